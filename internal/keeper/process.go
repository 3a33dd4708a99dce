package keeper

import (
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/footprint"
	"legion.dev/legion/internal/notify"
)

// Argv0 marks a process that is a keeper.
const Argv0 = "(legion-keeper)"

// The descriptors that it begins with: where the next legiond connects, and the
// connection of the one that started it.
const (
	listenerFD = 3
	connFD     = 4
)

// A program that links this package can be the keeper, whatever its main does.
func init() {
	if len(os.Args) == 2 && os.Args[0] == Argv0 {
		k := &process{path: os.Args[1], files: map[string][]File{}}
		k.run(listenerFD, connFD)
		os.Exit(0)
	}
}

// settled is after how long it gives back what only its start needed.
const settled = time.Second

// process is the keeper's own side.
type process struct {
	path  string
	files map[string][]File
	notes []notify.Message
	// socket is where services are heard while no legiond is there; heard is
	// closed when that has ended.
	socket *notify.Socket
	heard  chan struct{}
}

// run serves one legiond after the other, until one ends it or the directory
// that it could be found in is gone.
func (k *process) run(listener, conn int) {
	unix.CloseOnExec(listener)
	unix.CloseOnExec(conn)
	own, err := os.Stat(k.path)
	if err != nil {
		return
	}
	time.AfterFunc(settled, footprint.Trim)
	for {
		ended := k.serve(conn)
		unix.Close(conn)
		if ended {
			return
		}
		k.hear()
		conn = k.await(listener, own)
		if conn < 0 {
			return
		}
		k.hearNoMore()
		k.handOver(conn)
	}
}

// serve does what a legiond asks for; it is true where that is to end.
func (k *process) serve(conn int) bool {
	in := newReceiver(conn)
	for {
		p, fds, err := in.next()
		if err != nil {
			return false // it is gone
		}
		switch p.Op {
		case put:
			for _, fd := range fds {
				k.files[p.Key] = append(k.files[p.Key], File{p.Name, fd})
			}
		case drop:
			if k.files[p.Key] = without(k.files[p.Key], p.Name); len(k.files[p.Key]) == 0 {
				delete(k.files, p.Key)
			}
			if send(conn, packet{Op: done}) != nil {
				return false
			}
		case done:
			for _, m := range k.notes {
				m.Close()
			}
			k.notes = nil
		case end:
			return true
		}
	}
}

// lookAgain is how often it is seen, in milliseconds, whether the directory is
// still there while no legiond is.
const lookAgain = 60_000

// await waits for the next legiond; it is -1 where none can come any more.
func (k *process) await(listener int, own os.FileInfo) int {
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, lookAgain)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return -1
		}
		if n > 0 {
			if conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err == nil {
				return conn
			}
		}
		if now, err := os.Stat(k.path); err != nil || !os.SameFile(own, now) {
			return -1
		}
	}
}

// handOver gives a legiond all that there is. What services have said is kept
// until it has been dealt with: a legiond may be killed before.
func (k *process) handOver(conn int) {
	for key, files := range k.files {
		for _, f := range files {
			if send(conn, packet{Op: put, Key: key, Name: f.Name}, f.FD) != nil {
				return
			}
		}
	}
	for _, m := range k.notes {
		fds := m.FDs
		m.FDs = nil
		if send(conn, packet{Op: note, Note: &m}, fds...) != nil {
			return
		}
	}
	_ = send(conn, packet{Op: full})
}

// hear takes in what services say.
func (k *process) hear() {
	if len(k.files[Notify]) == 0 {
		return
	}
	fd, err := unix.FcntlInt(uintptr(k.files[Notify][0].FD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return
	}
	socket, err := notify.Resume("", os.NewFile(uintptr(fd), Notify))
	if err != nil {
		return
	}
	k.socket, k.heard = socket, make(chan struct{})
	go func() {
		defer close(k.heard)
		for m := range socket.Messages() {
			k.keep(m)
		}
	}()
}

func (k *process) hearNoMore() {
	if k.socket == nil {
		return
	}
	k.socket.Suspend()
	<-k.heard
	_ = k.socket.Close()
	k.socket = nil
}

// maxNotes bounds what is kept of what services say.
const maxNotes = 1024

// keep keeps a message, but of one that is said again and again only the first.
func (k *process) keep(m notify.Message) {
	if m.Vars["FDSTORE"] != "1" {
		m.Close() // a sender that waits at a barrier goes on
	}
	for _, before := range slices.Backward(k.notes) {
		if before.PID == m.PID {
			if len(m.FDs) == 0 && len(before.FDs) == 0 && maps.Equal(before.Vars, m.Vars) {
				return
			}
			break
		}
	}
	if len(k.notes) == maxNotes {
		i := max(slices.IndexFunc(k.notes, idle), 0)
		k.notes[i].Close()
		k.notes = slices.Delete(k.notes, i, i+1)
	}
	k.notes = append(k.notes, m)
}

// idle says that a message is only a sign of life or a word on the state.
func idle(m notify.Message) bool {
	for name := range m.Vars {
		if name != "WATCHDOG" && name != "STATUS" {
			return false
		}
	}
	return true
}
