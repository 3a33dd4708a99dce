// Package store keeps on disk what legiond must know after it has ended: the
// groups that were put by request, what is wanted, and the runs under way.
//
// Each group has a file per kind, replaced as a whole by rename, so that a
// power cut at any write leaves the old or the new one. Definitions and wishes
// are synced to the disk before the call returns. Runs matter to the same boot
// of the machine, where the page cache survives legiond; they are not waited
// for, and are synced in the background so that run numbers keep growing over
// a power cut. They are lines of one file (runs.go).
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// Kind names what a file holds; it is the name of its folder.
type Kind string

// The kinds of file.
const (
	// Groups are definitions put by request.
	Groups Kind = "groups"
	// Wishes are what somebody wants of a group.
	Wishes Kind = "wishes"
	// Runs are what is known of a group's services.
	Runs Kind = "runs"
	// Stamps are when timers with Persistent= elapsed last; they outlive the
	// boot and the unit.
	Stamps Kind = "stamps"
)

var kinds = []Kind{Groups, Wishes, Runs, Stamps}

// Store is a directory of state, held by one process at a time.
type Store struct {
	dir  string
	lock *os.File

	runs *runs
}

// Open takes the directory for this process. It fails if another has it.
func Open(dir string) (*Store, error) {
	for _, k := range kinds {
		if err := os.MkdirAll(filepath.Join(dir, string(k)), 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the state directory: %w", err)
		}
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of the state directory: %w", err)
	}
	if err := take(lock); err != nil {
		defer lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another legiond (pid %d) works on %s; give this one another --dir, or stop that one first", holder(lock), filepath.Dir(dir))
		}
		return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	if err := lock.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(lock, "%d\n", os.Getpid())
	}
	r, err := openRuns(filepath.Join(dir, string(Runs)))
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("cannot open the state of the runs: %w", err)
	}
	return &Store{dir: dir, lock: lock, runs: r}, nil
}

// take locks the file. A legiond that was killed just then may leave children
// between fork and exec, which hold its lock for a moment longer than it.
func take(lock *os.File) error {
	for range 500 {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if pid := holder(lock); !errors.Is(err, unix.EWOULDBLOCK) || pid > 0 && unix.Kill(pid, 0) == nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return unix.EWOULDBLOCK
}

// holder is the process that has written itself into the lock file.
func holder(lock *os.File) int {
	var buf [32]byte
	n, _ := lock.ReadAt(buf[:], 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	return pid
}

// Close gives the directory up, with everything on the disk.
func (s *Store) Close() error {
	err := s.Sync()
	return errors.Join(err, s.runs.file.Close(), s.lock.Close())
}

func (s *Store) path(k Kind, name string) string {
	return filepath.Join(s.dir, string(k), url.PathEscape(name)+".json")
}

// Save writes v as the state of the kind under the name. Groups and Wishes are
// on the disk when it returns.
func (s *Store) Save(k Kind, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot write the state of %s: %w", name, err)
	}
	path := s.path(k, name)
	if k == Runs {
		err = s.runs.add(name, data)
	} else {
		err = write(path, data)
	}
	if err != nil {
		return fmt.Errorf("cannot write the state of %s: %w", name, err)
	}
	if k == Runs {
		return nil
	}
	return syncPath(filepath.Dir(path))
}

func write(path string, data []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sync puts the runs saved since the last call on the disk.
func (s *Store) Sync() error { return s.runs.sync() }

// Delete forgets the state of the kind under the name.
func (s *Store) Delete(k Kind, name string) error {
	path := s.path(k, name)
	err := os.Remove(path)
	switch {
	case k == Runs: // a file of theirs is an earlier legiond's
		err = s.runs.add(name, nil)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		err = syncPath(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("cannot remove the state of %s: %w", name, err)
	}
	return nil
}

// Load reads everything of one kind, by name. A file that cannot be read is
// set aside, beside its place, and told of; it stops nothing.
func Load[T any](s *Store, k Kind) (map[string]T, []service.Warning) {
	dir := filepath.Join(s.dir, string(k))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, []service.Warning{{File: dir, Text: "cannot be read: " + err.Error()}}
	}
	all := map[string]T{}
	var problems []service.Warning
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasSuffix(e.Name(), ".new") {
			_ = os.Remove(path) // a write that a crash cut short
			continue
		}
		base, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		name, err := url.PathUnescape(base)
		var v T
		if err == nil {
			err = read(path, &v)
		}
		if err != nil {
			problems = append(problems, setAside(path, err))
			continue
		}
		all[name] = v
	}
	if k == Runs {
		problems = append(problems, loadRuns(s, all)...)
	}
	return all, problems
}

func read(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func setAside(path string, why error) service.Warning {
	w := service.Warning{File: path, Text: fmt.Sprintf("is not readable as state (%v)", why)}
	if err := os.Rename(path, path+".broken"); err != nil {
		w.Text += "; it could not be set aside: " + err.Error()
		return w
	}
	w.Text += "; it was set aside as " + filepath.Base(path) + ".broken; what it said is lost, everything else is as it was"
	return w
}
