// Package keeper holds open files for legiond in a process of its own, which
// outlives a legiond that is killed: the socket on which services tell of
// themselves, what they have left with the service manager, the sockets of
// socket units. While no legiond is there the keeper takes in what services
// say, so that none of them waits at a full socket.
package keeper

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/notify"
)

// Notify is the key of the socket of sd_notify(3).
const Notify = "notify"

// File is an open file descriptor and its name, which others may bear, too.
type File struct {
	Name string
	FD   int
}

// Start executes a program that links this package, as Argv0 with the path as
// its only argument and the two descriptors as its third and fourth. Both stay
// the caller's.
type Start func(path string, listener, conn int) error

// Keeper is legiond's end. Its owner alone calls its methods.
type Keeper struct {
	path  string
	start Start
	conn  int // -1 while there is no process
	// held are copies of what the process holds, for the next one if it dies.
	held map[string][]File
}

// Left is what a keeper has held while there was no legiond. The descriptors
// are the receiver's.
type Left struct {
	Files map[string][]File
	Notes []notify.Message
}

// patience bounds each wait for the process, in seconds: it has nothing to do
// but to answer.
const patience = 10

// Find connects to the keeper that an earlier legiond has left at the path.
// Where there is none, left is empty, and the first Put starts one.
func Find(path string, start Start) (k *Keeper, left Left, err error) {
	k = &Keeper{path: path, start: start, conn: -1, held: map[string][]File{}}
	left = Left{Files: map[string][]File{}}
	conn, err := connect(path)
	if err != nil || conn < 0 {
		return k, left, err
	}
	in := newReceiver(conn)
	for {
		p, fds, err := in.next()
		if err != nil {
			unix.Close(conn)
			return k, left, fmt.Errorf("cannot take over what was kept for legiond: %w", err)
		}
		switch p.Op {
		case put:
			for _, fd := range fds {
				if own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err == nil {
					k.held[p.Key] = append(k.held[p.Key], File{p.Name, own})
				}
				left.Files[p.Key] = append(left.Files[p.Key], File{p.Name, fd})
			}
		case note:
			p.Note.FDs = fds
			left.Notes = append(left.Notes, *p.Note)
		case full:
			k.conn = conn
			return k, left, nil
		}
	}
}

// connect is -1 where nobody listens at the path.
func connect(path string) (int, error) {
	address, err := notify.Short(path)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	bound(fd)
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return -1, nil
	}
	return -1, fmt.Errorf("cannot reach what keeps legiond's files at %s: %w", path, err)
}

func bound(conn int) {
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		_ = unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, option, &unix.Timeval{Sec: patience})
	}
}

// Put has the keeper hold copies of the file under the key, beside others of it.
func (k *Keeper) Put(key string, f File) error {
	own, err := unix.FcntlInt(uintptr(f.FD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("cannot keep %s: %w", key, err)
	}
	f.FD = own
	k.held[key] = append(k.held[key], f)
	if k.conn >= 0 && send(k.conn, packet{Op: put, Key: key, Name: f.Name}, own) == nil {
		return nil
	}
	return k.again()
}

// Drop has it close the files of the key that bear the name, or all where it is
// empty, and returns when that is done: their addresses are free then.
func (k *Keeper) Drop(key, name string) error {
	before := len(k.held[key])
	k.held[key] = without(k.held[key], name)
	if len(k.held[key]) == before {
		return nil
	}
	if !k.Holds(key) {
		delete(k.held, key)
	}
	if k.conn >= 0 && send(k.conn, packet{Op: drop, Key: key, Name: name}) == nil && answered(k.conn) {
		return nil
	}
	return k.again()
}

// answered waits for the answer to a drop; it is false where none comes.
func answered(conn int) bool {
	var answer [64]byte
	for {
		n, err := unix.Read(conn, answer[:])
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// Heard says that Left.Notes have been dealt with; until then they are kept for
// the next legiond.
func (k *Keeper) Heard() {
	if k.conn >= 0 {
		_ = send(k.conn, packet{Op: done})
	}
}

// Holds says whether there is anything under the key.
func (k *Keeper) Holds(key string) bool { return len(k.held[key]) > 0 }

// without closes the files of the name, or all, and returns the others.
func without(files []File, name string) []File {
	return slices.DeleteFunc(files, func(f File) bool {
		if name != "" && f.Name != name {
			return false
		}
		unix.Close(f.FD)
		return true
	})
}

// End ends the keeper: nothing is to outlive this legiond.
func (k *Keeper) End() {
	if k.conn >= 0 {
		if send(k.conn, packet{Op: end}) == nil {
			answered(k.conn) // never: its end closes the connection
		}
		unix.Close(k.conn)
		k.conn = -1
	}
	for key := range k.held {
		k.held[key] = without(k.held[key], "")
	}
}

// again is for where the keeper has died, or there was none yet: another begins
// with all that is held.
func (k *Keeper) again() error {
	if k.conn >= 0 {
		unix.Close(k.conn)
		k.conn = -1
	}
	for _, files := range k.held {
		if len(files) > 0 {
			return k.begin()
		}
	}
	return nil
}

// begin starts the process. What is sent waits on the connection until it reads.
func (k *Keeper) begin() error {
	fail := func(err error) error {
		return fmt.Errorf("cannot keep files beyond legiond's own life: %w", err)
	}
	listener, err := listen(k.path)
	if err != nil {
		return fail(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		unix.Close(listener)
		return fail(err)
	}
	bound(pair[0])
	err = k.start(k.path, listener, pair[1])
	unix.Close(listener)
	unix.Close(pair[1])
	for key, files := range k.held {
		for _, f := range files {
			if err == nil {
				err = send(pair[0], packet{Op: put, Key: key, Name: f.Name}, f.FD)
			}
		}
	}
	if err != nil {
		unix.Close(pair[0])
		return fail(err)
	}
	k.conn = pair[0]
	return nil
}

func listen(path string) (int, error) {
	address, err := notify.Short(path)
	if err != nil {
		return -1, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: address})
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
