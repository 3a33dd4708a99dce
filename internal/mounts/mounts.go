// Package mounts makes ready on the host what a service's mounts need, and
// takes it away when the last service that needed it is gone: sources, memory
// file systems, and the empty files and directories that are mounted over.
package mounts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// Mount points that are made carry a marker of each owner beneath the mount,
// and one that says who made them: they go when the last owner does, and only
// then, because to remove a mount point is to unmount it for everybody.
const (
	ownerMark = ".legion-owner."
	madeMark  = ".legion-made"
)

// Prepare makes ready the mounts of a service of owner, a group. Doing it again
// changes nothing. root is the service's root directory, empty for the host's.
func Prepare(owner, root string, list []service.Mount) error {
	return each(list, func(m *service.Mount, dir bool) error {
		if root != "" {
			return nil
		}
		if err := point(owner, m.Target, dir); err != nil {
			return fmt.Errorf("cannot make the mount point %q: %w", m.Target, err)
		}
		return nil
	})
}

// Sources makes ready what is to be mounted, and no mount points: a container's
// are its runtime's to make.
func Sources(list []service.Mount) error {
	return each(list, func(*service.Mount, bool) error { return nil })
}

// each makes the source of each mount ready, and calls f with whether it is a
// directory.
func each(list []service.Mount, f func(m *service.Mount, dir bool) error) error {
	if len(list) == 0 {
		return nil
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	for i := range list {
		m := &list[i]
		if err := source(m); err != nil {
			return fmt.Errorf("volume for %q: %w", m.Target, err)
		}
		dir, err := isDir(m)
		if err != nil {
			return fmt.Errorf("volume for %q: %w", m.Target, err)
		}
		if err := f(m, dir); err != nil {
			return err
		}
	}
	return nil
}

// ReleaseSources takes away what Sources made.
func ReleaseSources(list []service.Mount) error {
	var problems []error
	for i := range list {
		problems = append(problems, forget(&list[i]))
	}
	return errors.Join(problems...)
}

// forget ends what was mounted on the source.
func forget(m *service.Mount) error {
	if !m.Tmpfs && m.Image == nil {
		return nil
	}
	err := unix.Unmount(m.Source, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("cannot unmount %q: %w", m.Source, err)
}

// Release takes away what Prepare made for owner. Nothing of it may run.
func Release(owner string, list []service.Mount) error {
	if len(list) == 0 {
		return nil
	}
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	var problems []error
	for i := len(list) - 1; i >= 0; i-- {
		m := &list[i]
		unpoint(owner, m.Target)
		problems = append(problems, forget(m))
	}
	return errors.Join(problems...)
}

// lock keeps several legiond on one machine apart.
func lock() (func(), error) {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the mount points: %w", err)
	}
	for {
		err := unix.Flock(fd, unix.LOCK_EX)
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return nil, fmt.Errorf("cannot lock the mount points: %w", err)
		}
	}
}

// source checks that the source is what it must be, or makes it so.
func source(m *service.Mount) error {
	info, err := os.Stat(m.Source)
	kind, create := strings.CutSuffix(m.Is, "OrCreate")
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
		if err := makeSource(m, kind); err != nil {
			return err
		}
		info, err = os.Stat(m.Source)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist: make it, or use type DirectoryOrCreate or FileOrCreate", m.Source)
	}
	if err != nil {
		return err
	}
	mode := info.Mode()
	ok := map[string]bool{
		"": true, "Directory": mode.IsDir(), "File": mode.IsRegular(), "Socket": mode&fs.ModeSocket != 0,
		"CharDevice": mode&fs.ModeCharDevice != 0, "BlockDevice": mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0,
	}
	if is, known := ok[kind]; !known {
		return fmt.Errorf("type %q of %s is not known", m.Is, m.Source)
	} else if !is {
		return fmt.Errorf("%s must be a %s and is %s", m.Source, kind, mode)
	}
	switch {
	case m.Tmpfs:
		return memory(m)
	case m.Image != nil:
		return image(m)
	}
	return nil
}

func makeSource(m *service.Mount, kind string) error {
	if kind == "File" {
		file, err := os.OpenFile(m.Source, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return file.Close()
	}
	path := filepath.Clean(m.Source) // with a slash at its end it would be its own parent
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return permit(m)
}

// permit gives the directory its group and mode.
func permit(m *service.Mount) error {
	mode := uint32(0o755)
	if m.Mode != 0 {
		mode = m.Mode
	}
	if m.Group != nil {
		if err := os.Chown(m.Source, -1, int(*m.Group)); err != nil {
			return err
		}
	}
	return unix.Chmod(m.Source, mode)
}

// memory mounts a tmpfs on the source, unless there is one.
func memory(m *service.Mount) error {
	var own, above unix.Stat_t
	if err := unix.Stat(m.Source, &own); err != nil {
		return err
	}
	if err := unix.Stat(filepath.Dir(m.Source), &above); err != nil {
		return err
	}
	if own.Dev != above.Dev {
		return nil
	}
	options := "mode=0755"
	if m.Size > 0 {
		options += fmt.Sprintf(",size=%d", m.Size)
	}
	if err := unix.Mount("legion", m.Source, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", m.Source, err)
	}
	return permit(m)
}

// isDir says what is mounted, and makes a subPath that is not there.
func isDir(m *service.Mount) (bool, error) {
	if m.SubPath == "" {
		info, err := os.Stat(m.Source)
		return err == nil && info.IsDir(), err
	}
	volume, err := os.OpenRoot(m.Source)
	if err != nil {
		return false, err
	}
	defer func() { _ = volume.Close() }()
	info, err := volume.Stat(m.SubPath)
	if errors.Is(err, fs.ErrNotExist) && m.Image == nil {
		if err = volume.MkdirAll(m.SubPath, 0o755); err == nil {
			info, err = volume.Stat(m.SubPath)
		}
	}
	if err != nil {
		return false, fmt.Errorf("subPath %q: %w", m.SubPath, err)
	}
	return info.IsDir(), nil
}

// point makes a mount point that is not there.
func point(owner, path string, dir bool) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir() != dir:
		return fmt.Errorf("it is there, and a directory can only be mounted on a directory, a file on a file")
	case err == nil:
		return mark(owner, path, info.IsDir(), false)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := point(owner, filepath.Dir(path), true); err != nil {
		return err
	}
	if dir {
		err = os.Mkdir(path, 0o755)
	} else {
		var file *os.File
		if file, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o444); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return err
	}
	return mark(owner, path, dir, true)
}

// mark notes an owner of a mount point that Legion has made.
func mark(owner, path string, dir, made bool) error {
	madeName, ownerName := marks(owner, path, dir)
	if made {
		if err := touch(madeName); err != nil {
			return err
		}
	} else if _, err := os.Lstat(madeName); err != nil {
		return nil // somebody else's
	}
	return touch(ownerName)
}

// marks are the names of the markers: in a directory, beside a file.
func marks(owner, path string, dir bool) (made, own string) {
	if dir {
		return filepath.Join(path, madeMark), filepath.Join(path, ownerMark+owner)
	}
	parent, name := filepath.Split(path)
	return parent + madeMark + "." + name, parent + ownerMark + owner + "." + name
}

func touch(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return file.Close()
}

// unpoint removes the owner's marks of a mount point and of the directories
// above it, and each that was made for it and has no owner any more.
func unpoint(owner, path string) {
	for ; path != "/" && path != "."; path = filepath.Dir(path) {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		made, own := marks(owner, path, info.IsDir())
		if _, err := os.Lstat(made); err != nil {
			continue
		}
		_ = os.Remove(own)
		if info.IsDir() {
			entries, err := os.ReadDir(path)
			if err != nil || len(entries) != 1 {
				continue // another owner's mark, or somebody's file
			}
			if os.Remove(made) == nil && os.Remove(path) != nil {
				_ = touch(made)
			}
			continue
		}
		others, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ownerMark+"*."+filepath.Base(path)))
		if len(others) == 0 {
			_ = os.Remove(path)
			_ = os.Remove(made)
		}
	}
}
