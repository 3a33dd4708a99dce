package listen

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Watch tells when something waits on the sockets of a unit.
type Watch struct {
	poll  *os.File
	ready chan string

	mu    sync.Mutex
	names map[int]string // by descriptor
}

// NewWatch begins to watch nothing.
func NewWatch() (*Watch, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot watch sockets: %w", err)
	}
	w := &Watch{poll: os.NewFile(uintptr(fd), "epoll"), ready: make(chan string, 16), names: map[int]string{}}
	go w.run()
	return w, nil
}

// Ready names units on whose sockets something waits. Each Arm is answered once
// at most for each descriptor; what is told may be over.
func (w *Watch) Ready() <-chan string { return w.ready }

// Arm asks to be told once of each of the descriptors.
func (w *Watch) Arm(name string, fds []int) error {
	return w.control(func(poll int) error {
		for _, fd := range fds {
			ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(fd)}
			w.names[fd] = name
			err := unix.EpollCtl(poll, unix.EPOLL_CTL_MOD, fd, &ev)
			if errors.Is(err, unix.ENOENT) {
				err = unix.EpollCtl(poll, unix.EPOLL_CTL_ADD, fd, &ev)
			}
			if err != nil {
				return fmt.Errorf("cannot watch a socket: %w", err)
			}
		}
		return nil
	})
}

// Disarm ends the watch of the descriptors; it must come before they are
// closed.
func (w *Watch) Disarm(fds []int) {
	_ = w.control(func(poll int) error {
		for _, fd := range fds {
			delete(w.names, fd)
			_ = unix.EpollCtl(poll, unix.EPOLL_CTL_DEL, fd, nil) // it may never have been armed
		}
		return nil
	})
}

func (w *Watch) control(f func(poll int) error) error {
	conn, err := w.poll.SyscallConn()
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var inner error
	err = conn.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// Close ends the watch.
func (w *Watch) Close() error { return w.poll.Close() }

func (w *Watch) run() {
	conn, err := w.poll.SyscallConn()
	if err != nil {
		return
	}
	var events [32]unix.EpollEvent
	for {
		n := 0
		err := conn.Read(func(fd uintptr) bool {
			n, _ = unix.EpollWait(int(fd), events[:], 0)
			return n > 0
		})
		if err != nil {
			return // closed
		}
		for _, ev := range events[:n] {
			w.mu.Lock()
			name := w.names[int(ev.Fd)]
			w.mu.Unlock()
			if name != "" {
				w.ready <- name
			}
		}
	}
}
