package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// runs is the file of the runs. Each Save adds a line, the escaped name and the
// document; the newest line of a name counts, and one without document says
// that nothing is known of it any more. So a Save, of which each start makes
// two, is one system call, and however many services have started meanwhile,
// one file is to be put on the disk.
type runs struct {
	path string

	// syncing is held while the file is put on the disk or written anew.
	syncing sync.Mutex

	mu    sync.Mutex // of what follows
	file  *os.File
	size  int64 // whole lines only
	room  int64 // up to where the file has blocks, also when the disk is full
	dirty bool
	line  []byte // of the last Save, to be used again
	// lines are how long those that count are, by name, and once is their sum.
	lines map[string]int
	once  int
}

// openRuns opens the file in the directory. What a power cut has left of a last
// line is cut off: it was not waited for.
func openRuns(dir string) (*runs, error) {
	r := &runs{path: filepath.Join(dir, "log"), lines: map[string]int{}}
	var err error
	if r.file, err = os.OpenFile(r.path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r.file)
	if err == nil {
		r.size = int64(bytes.LastIndexByte(data, '\n') + 1)
		err = r.file.Truncate(r.size)
	}
	if err != nil {
		return nil, errors.Join(err, r.file.Close())
	}
	r.reserve()
	for escaped, line := range newest(data[:r.size]) {
		if name, err := url.PathUnescape(escaped); err == nil {
			r.count(name, len(line))
		}
	}
	return r, nil
}

// newest are the lines that count, by escaped name.
func newest(data []byte) map[string][]byte {
	lines := map[string][]byte{}
	for line := range bytes.Lines(data) {
		name, text, _ := bytes.Cut(line[:len(line)-1], []byte{' '})
		if len(text) == 0 {
			delete(lines, string(name))
		} else {
			lines[string(name)] = line
		}
	}
	return lines
}

// add writes a line, the whole of it or none.
func (r *runs) add(name string, data []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.line = append(r.line[:0], url.PathEscape(name)...)
	if data != nil {
		r.line = append(append(r.line, ' '), data...)
	}
	r.line = append(r.line, '\n')
	if r.size+int64(len(r.line)) > r.room-roomAhead/2 {
		r.reserve()
	}
	if _, err := r.file.WriteAt(r.line, r.size); err != nil {
		r.room = 0
		return errors.Join(err, r.file.Truncate(r.size))
	}
	r.size += int64(len(r.line))
	r.dirty = true
	if data == nil {
		r.count(name, 0)
	} else {
		r.count(name, len(r.line))
	}
	return nil
}

// roomAhead is how much more than it has the file has room for: hundreds of
// lines. What could not be written of a start would be forgotten by a legiond
// that is killed then, and started twice.
const roomAhead = 256 << 10

// reserve makes room ahead. Where that cannot be, there is what the disk has.
func (r *runs) reserve() {
	until := r.size + roomAhead
	err := unix.Fallocate(int(r.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, until)
	switch {
	case err == nil:
		r.room = until
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		r.room = math.MaxInt64 // this file system cannot
	}
}

// count notes how long the newest line of a name is, 0 for none that counts.
func (r *runs) count(name string, n int) {
	r.once += n - r.lines[name]
	if r.lines[name] = n; n == 0 {
		delete(r.lines, name)
	}
}

// worthShrinking is the size below which lines that do not count any more do no
// harm.
const worthShrinking = 256 << 10

// sync puts the file on the disk. Where most of its lines do not count any more
// it is written anew.
func (r *runs) sync() error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	dirty, size, once := r.dirty, r.size, r.once
	r.dirty = false
	r.mu.Unlock()
	if !dirty {
		return nil
	}
	err := r.file.Sync() // who puts another one in its place holds syncing
	if err == nil && size > max(worthShrinking, 4*int64(once)) {
		err = r.shrink(size)
	}
	if err == nil {
		err = syncPath(filepath.Dir(r.path))
	}
	if err != nil {
		r.mu.Lock()
		r.dirty = true
		r.mu.Unlock()
	}
	return err
}

// shrink puts a file with the lines that count in the place of this one, whose
// first bytes, up to size, are looked at; what is added meanwhile is copied.
func (r *runs) shrink(size int64) error {
	data := make([]byte, size)
	if _, err := r.file.ReadAt(data, 0); err != nil {
		return err
	}
	next, err := os.OpenFile(r.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if err = r.replace(next, data); err != nil {
		return errors.Join(err, next.Close(), os.Remove(next.Name()))
	}
	return nil
}

func (r *runs) replace(next *os.File, data []byte) error {
	var kept []byte
	for _, line := range newest(data) {
		kept = append(kept, line...)
	}
	if _, err := next.Write(kept); err != nil {
		return err
	}
	if err := next.Sync(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	added := make([]byte, r.size-int64(len(data)))
	if _, err := r.file.ReadAt(added, int64(len(data))); err != nil {
		return err
	}
	if _, err := next.Write(added); err != nil {
		return err
	}
	if err := os.Rename(next.Name(), r.path); err != nil {
		return err
	}
	before := r.file
	r.file, r.size, r.room = next, int64(len(kept)+len(added)), 0
	return before.Close()
}

// loadRuns adds to all what the lines say. Those that came from files of their
// own, as an earlier legiond kept them, become lines.
func loadRuns[T any](s *Store, all map[string]T) []service.Warning {
	r := s.runs
	var problems []service.Warning
	data, err := os.ReadFile(r.path)
	if err != nil {
		return []service.Warning{{File: r.path, Text: "cannot be read: " + err.Error()}}
	}
	lines := newest(data[:r.size])
	old := slices.Collect(maps.Keys(all))
	for escaped, line := range lines {
		_, text, _ := bytes.Cut(line, []byte{' '})
		name, err := url.PathUnescape(escaped)
		var v T
		if err == nil {
			err = json.Unmarshal(text, &v)
		}
		if err != nil {
			problems = append(problems, service.Warning{File: r.path, Text: fmt.Sprintf("what it says of %q is not readable as state (%v); that is lost, everything else is as it was", escaped, err)})
			continue
		}
		all[name] = v
	}
	if err := takeOver(s, all, old, lines); err != nil {
		problems = append(problems, service.Warning{File: r.path, Text: err.Error()})
	}
	return problems
}

// takeOver makes lines of files, and removes these.
func takeOver[T any](s *Store, all map[string]T, old []string, lines map[string][]byte) error {
	for _, name := range old {
		if lines[url.PathEscape(name)] != nil {
			continue
		}
		if err := s.Save(Runs, name, all[name]); err != nil {
			return err
		}
	}
	if err := s.Sync(); err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(s.path(Runs, name)); err != nil {
			return err
		}
	}
	return nil
}
