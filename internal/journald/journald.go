// Package journald serves the sockets on which programs speak to systemd's
// journal, where nobody else does: datagrams of fields (sd_journal_send(3),
// logger --journald) and streams of lines (sd_journal_stream_fd(3),
// systemd-cat(1)).
package journald

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/notify"
)

// Paths are where the sockets are.
type Paths struct{ Native, Stream string }

// Standard are systemd's names.
var Standard = Paths{Native: "/run/systemd/journal/socket", Stream: "/run/systemd/journal/stdout"}

// Limits: of a datagram or of the file that takes its place, which may be 768 MB
// with systemd; of a line, which is then cut in two; of streams at a time.
const (
	maxEntry   = 16 << 20
	maxLine    = 48 << 10
	maxStreams = 4096
)

// Line is one that a process has said.
type Line struct {
	PID int
	// Text is "<6>tag[123]: text".
	Text string
	// CgroupID is the inode of the sender's cgroup; 0 where it is not known.
	CgroupID uint64
}

// Stream is a connection with what has come on it and is not said yet.
type Stream struct {
	FD       int      `json:"fd"`
	PID      int      `json:"pid"`
	CgroupID uint64   `json:"cgroup,omitempty"`
	Head     []string `json:"head,omitempty"`
	Rest     []byte   `json:"rest,omitempty"`
}

// Handover is what one legiond leaves to the next in the same process.
type Handover struct {
	Native   int      `json:"native"`
	Listener int      `json:"listener"`
	Streams  []Stream `json:"streams,omitempty"`
}

// FDs are all descriptors in it.
func (h *Handover) FDs() []int {
	fds := []int{h.Native, h.Listener}
	for _, s := range h.Streams {
		fds = append(fds, s.FD)
	}
	return fds
}

// Sockets receives what programs say.
type Sockets struct {
	paths    Paths
	native   *notify.Socket
	listener *net.UnixListener
	lines    chan Line
	closing  chan struct{}
	work     sync.WaitGroup

	mu        sync.Mutex
	suspended bool
	streams   map[*Stream]*net.UnixConn
}

// ErrServed is the error of Open where somebody else takes what is said.
var ErrServed = errors.New("somebody else serves it")

// Open binds the sockets, or goes on with those of an earlier legiond.
func Open(p Paths, before *Handover) (*Sockets, error) {
	s := &Sockets{paths: p, lines: make(chan Line), closing: make(chan struct{}), streams: map[*Stream]*net.UnixConn{}}
	var err error
	if before != nil {
		err = s.resume(before)
	} else {
		err = s.bind()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot serve %s: %w", filepath.Dir(p.Native), err)
	}
	s.work.Add(2)
	go s.datagrams()
	go s.accept()
	go func() {
		s.work.Wait()
		close(s.lines)
	}()
	return s, nil
}

func (s *Sockets) bind() error {
	for network, path := range map[string]string{"unixgram": s.paths.Native, "unix": s.paths.Stream} {
		if c, err := net.Dial(network, path); err == nil {
			_ = c.Close()
			return ErrServed
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	}
	if err := os.Remove(s.paths.Stream); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var err error
	if s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.paths.Stream, Net: "unix"}); err != nil {
		return err
	}
	s.listener.SetUnlinkOnClose(false)
	if err = os.Chmod(s.paths.Stream, 0o666); err == nil {
		s.native, err = notify.ListenRaw(s.paths.Native, maxEntry)
	}
	if err != nil {
		_ = s.listener.Close()
	}
	return err
}

func (s *Sockets) resume(h *Handover) error {
	file := os.NewFile(uintptr(h.Listener), "listener")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return err
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return errors.New("what was handed over is no unix socket")
	}
	if s.native, err = notify.ResumeRaw(s.paths.Native, os.NewFile(uintptr(h.Native), "native"), maxEntry); err != nil {
		_ = l.Close()
		return err
	}
	s.listener = listener
	s.listener.SetUnlinkOnClose(false)
	for _, st := range h.Streams {
		file := os.NewFile(uintptr(st.FD), "stream")
		c, err := net.FileConn(file)
		_ = file.Close()
		if conn, ok := c.(*net.UnixConn); err == nil && ok {
			s.begin(&st, conn)
		}
	}
	return nil
}

// Lines are delivered in the order in which each process has said them. The
// channel is closed with the sockets.
func (s *Sockets) Lines() <-chan Line { return s.lines }

// Suspend ends Lines after what has been received; the sockets stay.
func (s *Sockets) Suspend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspended = true
	s.native.Suspend()
	_ = s.listener.SetDeadline(time.Unix(1, 0))
	for _, c := range s.streams {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
}

// Handover is what there is once Lines are closed after Suspend. Its descriptors
// stay open until the process ends or executes another program.
func (s *Sockets) Handover() (h Handover, err error) {
	if h.Native, err = s.native.FD(); err != nil {
		return h, err
	}
	if h.Listener, err = descriptor(s.listener); err != nil {
		return h, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for st, c := range s.streams {
		if st.FD, err = descriptor(c); err != nil {
			return h, err
		}
		h.Streams = append(h.Streams, *st)
	}
	return h, nil
}

// Close ends the service and takes the sockets away.
func (s *Sockets) Close() {
	close(s.closing)
	_ = s.native.Close()
	_ = s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspended = true // nobody begins any more
	for _, c := range s.streams {
		_ = c.Close()
	}
	_, _ = os.Remove(s.paths.Native), os.Remove(s.paths.Stream)
}

// tell is false where nobody listens any more.
func (s *Sockets) tell(e entry, pid int, cgroup uint64) bool {
	for _, text := range e.lines(pid) {
		select {
		case s.lines <- Line{PID: pid, Text: text, CgroupID: cgroup}:
		case <-s.closing:
			return false
		}
	}
	return true
}

func (s *Sockets) datagrams() {
	defer s.work.Done()
	for m := range s.native.Messages() {
		data := m.Data
		if len(data) == 0 && len(m.FDs) == 1 {
			data = content(m.FDs[0])
		}
		m.Close()
		for _, e := range entries(data) {
			s.tell(e, m.PID, m.CgroupID)
		}
	}
}

// content is that of a file that was sent in place of a datagram.
func content(fd int) []byte {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxEntry {
		return nil
	}
	data := make([]byte, st.Size)
	for done := 0; done < len(data); {
		n, err := unix.Pread(fd, data[done:], int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return data[:done]
		}
		done += n
	}
	return data
}

func (s *Sockets) accept() {
	defer s.work.Done()
	for {
		c, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			select { // most likely for want of descriptors
			case <-time.After(100 * time.Millisecond):
			case <-s.closing:
				return
			}
			continue
		}
		st := &Stream{}
		st.PID, st.CgroupID = peer(c)
		s.begin(st, c)
	}
}

func (s *Sockets) begin(st *Stream, c *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= maxStreams {
		_ = c.Close()
		return
	}
	if s.suspended {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	s.streams[st] = c
	s.work.Add(1)
	go s.follow(st, c)
}

// follow reads a stream to its end, or to that of this service: then it is left
// to the next legiond.
func (s *Sockets) follow(st *Stream, c *net.UnixConn) {
	defer s.work.Done()
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		st.Rest = append(st.Rest, buf[:n]...)
		if !s.take(st, false) {
			break
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			s.take(st, errors.Is(err, io.EOF))
			break
		}
	}
	s.mu.Lock()
	delete(s.streams, st)
	s.mu.Unlock()
	_ = c.Close()
}

// take says the whole lines of what has come, and at the end what is left.
func (s *Sockets) take(st *Stream, end bool) bool {
	for {
		i := bytes.IndexByte(st.Rest, '\n')
		skip := 1
		if i < 0 && len(st.Rest) >= maxLine {
			i, skip = maxLine, 0
		}
		if i < 0 && end && len(st.Rest) > 0 {
			i, skip = len(st.Rest), 0
		}
		if i < 0 {
			st.Rest = slices.Clip(st.Rest)
			return true
		}
		line := string(st.Rest[:i])
		st.Rest = st.Rest[i+skip:]
		if len(st.Head) < headerLines {
			st.Head = append(st.Head, line)
			continue
		}
		if !s.tell(streamEntry(st.Head, line), st.PID, st.CgroupID) {
			return false
		}
	}
}

// peer is who has connected.
func peer(c *net.UnixConn) (pid int, cgroup uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
		if pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil { // Linux 6.5
			cgroup = notify.CgroupID(pidfd)
			unix.Close(pidfd)
		}
	})
	return pid, cgroup
}

// descriptor is another one of a socket.
func descriptor(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) }); e != nil {
		return -1, e
	}
	return fd, err
}
