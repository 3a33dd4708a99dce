// Package console holds what a service reads from where somebody may attach to
// it: the writing end of a pipe, or the near end of a terminal. Copies are with
// a keeper, so that the service sees no end of its input, and no hang-up, when
// legiond is killed. What a service writes to its terminal goes to its log and
// to all who are attached.
package console

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// The names of the files of a console, on the way of a container's terminal to
// legiond: the socket that its runtime connects to, the connection on which the
// terminal is, the terminal. A pipe is Once where it is to be closed when the
// first who wrote to it has left.
const (
	Terminal   = "terminal"
	Connection = "connection"
	Listener   = "listener"
	Pipe       = "pipe"
	Once       = "pipe-once"
)

// File is an open file descriptor and what it is.
type File struct {
	Name string
	FD   int
}

// Keeper holds copies of files where they outlive this process; see package
// keeper. Its methods are called from several goroutines.
type Keeper interface {
	Put(key string, f File)
	Drop(key, name string)
}

// Consoles are those of all services, by keys that the caller chooses.
type Consoles struct {
	keeper Keeper
	mu     sync.Mutex
	all    map[string]*console
}

// New makes one without any; without a keeper nothing outlives this process.
func New(k Keeper) *Consoles {
	if k == nil {
		k = noKeeper{}
	}
	return &Consoles{keeper: k, all: map[string]*console{}}
}

type noKeeper struct{}

func (noKeeper) Put(string, File)    {}
func (noKeeper) Drop(string, string) {}

// Open makes the console of a run, in place of an earlier one's. The result is
// the file for the process, which is the caller's to close: the reading end of a
// pipe, or a terminal. With a socket it is 0: an OCI runtime makes the terminal
// and passes it there. log is the FIFO for what comes from a terminal.
func (c *Consoles) Open(key string, s *service.Console, socket, log string) (int, error) {
	c.End(key)
	one := newConsole(key, c.keeper)
	theirs, file, err := ends(s, socket)
	if err != nil {
		return 0, err
	}
	c.keeper.Put(key, file) // before there is a process that it could be missed by
	if err := one.hold(file, log); err != nil {
		unix.Close(theirs)
		c.keeper.Drop(key, "")
		return 0, err
	}
	c.add(one)
	return theirs, nil
}

func (c *Consoles) add(one *console) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all[one.key] = one
}

// Resume goes on with the files that were kept while there was no legiond.
func (c *Consoles) Resume(key string, files []File, log string) error {
	one := newConsole(key, c.keeper)
	var best *File
	for _, name := range []string{Terminal, Pipe, Once, Connection, Listener} {
		for i := range files {
			switch f := &files[i]; {
			case f.Name != name:
			case best == nil:
				best = f
			default:
				// Killed on the way from one to the next.
				c.keeper.Drop(key, f.Name)
				unix.Close(f.FD)
			}
		}
	}
	if best == nil {
		return nil
	}
	if err := one.hold(*best, log); err != nil {
		return err
	}
	c.add(one)
	return nil
}

// End is for a run that is over: what it has still written is passed on, and
// who is attached comes to the end.
func (c *Consoles) End(key string) {
	c.mu.Lock()
	one := c.all[key]
	delete(c.all, key)
	c.mu.Unlock()
	if one != nil {
		one.end()
	}
}

// Suspend stops passing on, and gives the files of each console to whom takes
// this process's place.
func (c *Consoles) Suspend() map[string][]File {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string][]File{}
	for key, one := range c.all {
		if f := one.suspend(); f.FD > 0 {
			out[key] = []File{f}
		}
	}
	return out
}

// ErrNone is the error of Attach where there is nothing to attach to.
var ErrNone = errors.New("it has neither a standard input nor a terminal now that could be attached to")

// ErrClosed is the error of Attach for an input that was closed after its first
// use.
var ErrClosed = errors.New("its standard input was closed when the first who was attached left (stdinOnce)")

// Attach serves a client until it leaves or the run is over; see
// hostapi.AttachRequest. The connection is closed then.
func (c *Consoles) Attach(key string, input bool, conn net.Conn) error {
	c.mu.Lock()
	one := c.all[key]
	c.mu.Unlock()
	if one == nil {
		return ErrNone
	}
	return one.attach(conn, input)
}

// ends makes the two ends of a console: the process's, and ours.
func ends(s *service.Console, socket string) (theirs int, ours File, err error) {
	switch {
	case socket != "":
		ours = File{Name: Listener}
		ours.FD, err = listen(socket)
	case s.Terminal:
		ours = File{Name: Terminal}
		ours.FD, theirs, err = openTerminal()
	default:
		ours = File{Name: Pipe}
		if s.Once {
			ours.Name = Once
		}
		var fds [2]int
		if err = unix.Pipe2(fds[:], unix.O_CLOEXEC); err == nil {
			theirs, ours.FD = fds[0], fds[1]
		}
	}
	if err != nil {
		return 0, ours, fmt.Errorf("make a %s for it to read from: %w", ours.Name, err)
	}
	return theirs, ours, nil
}

// openTerminal makes a terminal that is nobody's own yet.
func openTerminal() (ours, theirs int, err error) {
	ours, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	if err = unix.IoctlSetPointerInt(ours, unix.TIOCSPTLCK, 0); err == nil {
		fd, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(ours), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if e == 0 {
			return ours, int(fd), nil
		}
		err = e
	}
	unix.Close(ours)
	return 0, 0, err
}

// listen makes the socket for a runtime. It is bound by way of its directory:
// its path may be longer than a socket's address.
func listen(path string) (int, error) {
	dir, base := filepath.Split(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(at)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", at, base)}); err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}
