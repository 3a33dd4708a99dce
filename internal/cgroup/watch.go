package cgroup

import (
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watcher reads one inotify descriptor for all cgroups.
type watcher struct {
	file *os.File

	mu    sync.Mutex
	paths map[int32]string
	wds   map[string]int32
	dirs  map[string]string
}

func newWatcher() (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &watcher{
		file: os.NewFile(uintptr(fd), "inotify"), paths: make(map[int32]string),
		wds: make(map[string]int32), dirs: make(map[string]string),
	}, nil
}

// add watches the cgroup of a path; false if it was watched before.
func (w *watcher) add(path, dir string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.wds[path]; ok {
		return false, nil
	}
	wd, err := w.control(func(fd int) (int, error) {
		return unix.InotifyAddWatch(fd, filepath.Join(dir, "cgroup.events"), unix.IN_MODIFY)
	})
	if err != nil {
		return false, err
	}
	w.paths[int32(wd)], w.wds[path], w.dirs[path] = path, int32(wd), dir
	return true, nil
}

func (w *watcher) remove(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, ok := w.wds[path]
	if !ok {
		return
	}
	_, _ = w.control(func(fd int) (int, error) { return unix.InotifyRmWatch(fd, uint32(wd)) })
	delete(w.paths, wd)
	delete(w.wds, path)
	delete(w.dirs, path)
}

// control runs f on the descriptor without taking it out of the poller.
func (w *watcher) control(f func(fd int) (int, error)) (int, error) {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	var inner error
	if err := conn.Control(func(fd uintptr) { n, inner = f(int(fd)) }); err != nil {
		return -1, err
	}
	return n, inner
}

func (w *watcher) close() { _ = w.file.Close() }

// next returns the paths whose state has changed; false at the end.
func (w *watcher) next(buf []byte) (map[string]string, bool) {
	n, err := w.file.Read(buf)
	if err != nil {
		return nil, false
	}
	changed := make(map[string]string)
	w.mu.Lock()
	defer w.mu.Unlock()
	for off := 0; off+unix.SizeofInotifyEvent <= n; {
		ev := (*unix.InotifyEvent)(unsafe.Pointer(&buf[off]))
		off += unix.SizeofInotifyEvent + int(ev.Len)
		switch path, ok := w.paths[ev.Wd]; {
		case ev.Mask&unix.IN_Q_OVERFLOW != 0:
			for p, dir := range w.dirs {
				changed[p] = dir
			}
		case !ok:
		case ev.Mask&unix.IN_IGNORED != 0:
			delete(w.paths, ev.Wd)
			if w.wds[path] == ev.Wd {
				delete(w.wds, path)
				delete(w.dirs, path)
			}
		default:
			changed[path] = w.dirs[path]
		}
	}
	return changed, true
}

// forward turns news of the kernel into Empty.
func (t *Tree) forward() {
	buf := make([]byte, 4096)
	for {
		changed, ok := t.watch.next(buf)
		if !ok {
			return
		}
		for path, dir := range changed {
			if !populated(dir) && !t.tell(path) {
				return
			}
		}
	}
}

func (t *Tree) tell(path string) bool {
	select {
	case t.empty <- path:
		return true
	case <-t.closed:
		return false
	}
}
