// Package volume writes the files of a volume so that a reader sees all of one
// version or all of another: the files lie in a directory of their own, to which
// the link "..data" leads, and a new version replaces that link in one step.
// Programs that watch ConfigMap volumes on a kubelet's nodes watch that link.
package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	dataLink = "..data"
	nextLink = "..data_next"
)

// File is one file of a volume.
type File struct {
	Data []byte
	Mode fs.FileMode
}

// Owner is whose the files are; nil leaves them the writer's.
type Owner struct{ User, Group *int64 }

// Write makes the directory hold just these files, by relative path, and empty
// directories at points, which are mounted over. It says whether a file had to
// be written. As root only: owner other than nil.
func Write(dir string, files map[string]File, points []string, owner Owner) (bool, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, fmt.Errorf("cannot make the volume: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return false, fmt.Errorf("cannot make the volume: %w", err)
	}
	old, _ := os.Readlink(filepath.Join(dir, dataLink))
	if old != "" && same(filepath.Join(dir, old), files) {
		return false, makePoints(dir, points)
	}
	fresh, err := os.MkdirTemp(dir, "..version-")
	if err != nil {
		return false, fmt.Errorf("cannot write the volume %s: %w", dir, err)
	}
	if err := fill(fresh, files, owner); err != nil {
		_ = os.RemoveAll(fresh)
		return false, fmt.Errorf("cannot write the volume %s: %w", dir, err)
	}
	if err := swap(dir, filepath.Base(fresh), files); err != nil {
		_ = os.RemoveAll(fresh)
		return false, fmt.Errorf("cannot write the volume %s: %w", dir, err)
	}
	return true, errors.Join(tidy(dir, filepath.Base(fresh), files, points), makePoints(dir, points))
}

// makePoints makes directories that are mounted over; a file of the volume may
// be in the place of one.
func makePoints(dir string, points []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("cannot make the mount points in a volume: %w", err)
	}
	defer func() { _ = root.Close() }()
	for _, at := range points {
		if _, err := root.Lstat(at); err == nil {
			continue
		}
		if err := root.MkdirAll(at, 0o755); err != nil {
			return fmt.Errorf("cannot make the mount point %s in a volume: %w", at, err)
		}
	}
	return nil
}

// same compares contents and modes.
func same(dir string, files map[string]File) bool {
	left := len(files)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		want, ok := files[name]
		if !ok {
			return fs.ErrInvalid
		}
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != want.Mode.Perm() {
			return fs.ErrInvalid
		}
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(data, want.Data) {
			return fs.ErrInvalid
		}
		left--
		return nil
	})
	return err == nil && left == 0
}

func fill(dir string, files map[string]File, owner Owner) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir) // a path cannot lead out of it
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		if parent := filepath.Dir(name); parent != "." {
			if err := root.MkdirAll(parent, 0o755); err != nil {
				return err
			}
		}
		if err := root.WriteFile(name, f.Data, 0o600); err != nil {
			return err
		}
		if owner.User != nil || owner.Group != nil {
			if err := root.Chown(name, number(owner.User), number(owner.Group)); err != nil {
				return err
			}
		}
		if err := root.Chmod(name, f.Mode.Perm()); err != nil {
			return err
		}
	}
	return nil
}

func number(n *int64) int {
	if n == nil {
		return -1
	}
	return int(*n)
}

// swap makes the new version the one that is seen.
func swap(dir, version string, files map[string]File) error {
	next := filepath.Join(dir, nextLink)
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(version, next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	for name := range tops(files) {
		err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// tops are the first parts of the files' paths.
func tops(files map[string]File) map[string]bool {
	out := map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		out[top] = true
	}
	return out
}

// tidy removes what is of no version any more.
func tidy(dir, version string, files map[string]File, points []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cannot tidy the volume: %w", err)
	}
	keep := tops(files)
	for _, at := range points {
		top, _, _ := strings.Cut(at, "/")
		keep[top] = true
	}
	var problems []error
	for _, e := range entries {
		if name := e.Name(); name != dataLink && name != version && !keep[name] {
			problems = append(problems, os.RemoveAll(filepath.Join(dir, name)))
		}
	}
	return errors.Join(problems...)
}
