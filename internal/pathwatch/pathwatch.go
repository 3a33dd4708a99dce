// Package pathwatch tells of changes at paths, whether they exist yet or not
// (systemd.path(5), inotify(7)).
package pathwatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// Change tells that something has changed at the paths of a unit.
type Change struct {
	Name string
	// Touched: it is one that PathChanged= or PathModified= is for.
	Touched bool
}

// What is watched for at the path itself, by the kind of condition, and at the
// directories above it, where the path may come and go.
const (
	atSelf     = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ATTRIB
	atEntries  = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO
	atChanged  = atSelf | atEntries | unix.IN_CLOSE_WRITE
	atModified = atChanged | unix.IN_MODIFY
)

// Watch is an inotify instance.
type Watch struct {
	file    *os.File
	changes chan Change

	mu    sync.Mutex
	units map[string]*service.Path
	// marks are the watches in the kernel: who asked, and for which events at
	// the path itself.
	marks map[int32]map[mark]uint32
	// existed tells, for each path of PathChanged= and PathModified=, whether
	// it was there.
	existed map[mark]bool
}

// mark is one condition of one unit.
type mark struct {
	name string
	path string
}

// New begins to watch nothing.
func New() (*Watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch paths: %w (fs.inotify.max_user_instances bounds how many do)", err)
	}
	w := &Watch{
		file: os.NewFile(uintptr(fd), "inotify"), changes: make(chan Change, 16),
		units: map[string]*service.Path{}, marks: map[int32]map[mark]uint32{}, existed: map[mark]bool{},
	}
	go w.run()
	return w, nil
}

// Changes tells of changes; several may be told as one.
func (w *Watch) Changes() <-chan Change { return w.changes }

// Watch begins to tell of changes under the name.
func (w *Watch) Watch(name string, p *service.Path) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.units[name] = p
	for _, c := range p.Conditions {
		w.existed[mark{name, c.Path}] = exists(c.Path)
	}
	if err := w.place(name, p); err != nil {
		w.forget(name)
		return err
	}
	return nil
}

// Forget ends that.
func (w *Watch) Forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(name)
}

func (w *Watch) forget(name string) {
	delete(w.units, name)
	for wd, marks := range w.marks {
		for m := range marks {
			if m.name == name {
				delete(marks, m)
			}
		}
		if len(marks) == 0 {
			delete(w.marks, wd)
			w.fd(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(wd)) }) // it may be gone with its file
		}
	}
	for m := range w.existed {
		if m.name == name {
			delete(w.existed, m)
		}
	}
}

func (w *Watch) fd(f func(int)) {
	if conn, err := w.file.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { f(int(fd)) })
	}
}

// Close ends all watches.
func (w *Watch) Close() error { return w.file.Close() }

// place puts the kernel's watches for a unit: on each path, if it is there, and
// on every directory above it.
func (w *Watch) place(name string, p *service.Path) error {
	for _, c := range p.Conditions {
		m := mark{name, c.Path}
		path := c.Path
		if c.Kind == "ExistsGlob" {
			path = fixedPart(path)
		}
		for at, self := path, true; ; at, self = filepath.Dir(at), false {
			mask := uint32(atSelf | atEntries)
			own := uint32(0)
			if self {
				own = ownMask(c.Kind)
				mask |= own
			}
			if err := w.add(at, mask, m, own); err != nil {
				return err
			}
			if at == "/" {
				break
			}
		}
	}
	return nil
}

func ownMask(kind string) uint32 {
	switch kind {
	case "Changed":
		return atChanged
	case "Modified":
		return atModified
	}
	return 0
}

// fixedPart is the path as far as it has no pattern.
func fixedPart(glob string) string {
	for strings.ContainsAny(glob, "*?[\\") {
		glob = filepath.Dir(glob)
	}
	return glob
}

func (w *Watch) add(path string, mask uint32, m mark, own uint32) error {
	var wd int
	var err error
	w.fd(func(fd int) { wd, err = unix.InotifyAddWatch(fd, path, mask|unix.IN_MASK_ADD) })
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EACCES), errors.Is(err, unix.ELOOP):
		return nil // a directory above tells when it comes
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("cannot watch %s: the limit fs.inotify.max_user_watches is reached", path)
	case err != nil:
		return fmt.Errorf("cannot watch %s: %w", path, err)
	}
	marks := w.marks[int32(wd)]
	if marks == nil {
		marks = map[mark]uint32{}
		w.marks[int32(wd)] = marks
	}
	marks[m] |= own
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (w *Watch) run() {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return // closed
		}
		for _, c := range w.digest(buf[:n]) {
			w.changes <- c
		}
	}
}

// digest makes changes of events, one for each unit.
func (w *Watch) digest(data []byte) []Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	touched := map[string]bool{}
	for len(data) >= unix.SizeofInotifyEvent {
		var ev unix.InotifyEvent
		if err := binary.Read(bytes.NewReader(data), binary.NativeEndian, &ev); err != nil {
			break
		}
		data = data[min(len(data), unix.SizeofInotifyEvent+int(ev.Len)):]
		if ev.Mask&unix.IN_Q_OVERFLOW != 0 {
			for name := range w.units {
				touched[name] = true // what was lost may be anything
			}
			continue
		}
		for m, own := range w.marks[ev.Wd] {
			touched[m.name] = touched[m.name] || ev.Mask&own != 0
		}
		if ev.Mask&unix.IN_MOVE_SELF != 0 { // it has another path now
			w.fd(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(ev.Wd)) })
			delete(w.marks, ev.Wd)
		}
		if ev.Mask&unix.IN_IGNORED != 0 {
			delete(w.marks, ev.Wd)
		}
	}
	var out []Change
	for name, is := range touched {
		p := w.units[name]
		if p == nil {
			continue
		}
		out = append(out, Change{Name: name, Touched: w.again(name, p) || is})
	}
	return out
}

// again puts the watches anew, since paths may have come or gone; it says
// whether one of those for PathChanged= or PathModified= has.
func (w *Watch) again(name string, p *service.Path) (toggled bool) {
	_ = w.place(name, p) // what cannot be watched now is tried at the next change
	for _, c := range p.Conditions {
		m := mark{name, c.Path}
		now := exists(c.Path)
		if now != w.existed[m] && ownMask(c.Kind) != 0 {
			toggled = true
		}
		w.existed[m] = now
	}
	return toggled
}
