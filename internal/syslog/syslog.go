// Package syslog takes in what programs say by syslog(3) on /dev/log, where
// nobody else does so. As systemd's journal it passes every message on to the
// socket on which a syslog daemon takes them (syslog.socket).
package syslog

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/notify"
)

// Paths are where the sockets are.
type Paths struct {
	// Log is what programs know, a link to Own.
	Log, Own string
	// Daemon is where a syslog daemon takes messages.
	Daemon string
}

// Standard are systemd's names.
var Standard = Paths{Log: "/dev/log", Own: "/run/systemd/journal/dev-log", Daemon: "/run/systemd/journal/syslog"}

// longest is what a message may be long; more is cut by syslog(3) itself.
const longest = 64 << 10

// Line is one message.
type Line struct {
	PID int
	// Text is "<6>tag[123]: text".
	Text string
	// CgroupID is the inode of the sender's cgroup; 0 where it is not known.
	CgroupID uint64
}

// Socket receives messages.
type Socket struct {
	paths   Paths
	socket  *notify.Socket
	lines   chan Line
	forward int // a socket to send from
}

// ErrServed is the error of Open where somebody else takes the messages.
var ErrServed = errors.New("somebody else serves it")

// Open binds the socket, or goes on with one of an earlier legiond's.
func Open(p Paths, before *os.File) (*Socket, error) {
	s := &Socket{paths: p, lines: make(chan Line, 64), forward: -1}
	var err error
	if before != nil {
		s.socket, err = notify.ResumeRaw(p.Own, before, longest)
	} else {
		s.socket, err = bind(p)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot serve %s: %w", p.Log, err)
	}
	if s.forward, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		s.Close()
		return nil, fmt.Errorf("cannot pass messages of %s on: %w", p.Log, err)
	}
	go s.run()
	return s, nil
}

func bind(p Paths) (*notify.Socket, error) {
	if c, err := net.Dial("unixgram", p.Log); err == nil {
		_ = c.Close()
		return nil, ErrServed
	}
	if err := os.MkdirAll(filepath.Dir(p.Own), 0o755); err != nil {
		return nil, err
	}
	socket, err := notify.ListenRaw(p.Own, longest)
	if err != nil {
		return nil, err
	}
	temporary := p.Log + ".legion"
	_ = os.Remove(temporary)
	if err = os.Symlink(p.Own, temporary); err == nil {
		err = os.Rename(temporary, p.Log)
	}
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return socket, nil
}

// Lines are delivered in the order they were sent. The channel is closed with
// the socket.
func (s *Socket) Lines() <-chan Line { return s.lines }

// Suspend ends Lines after what has been received; the socket stays.
func (s *Socket) Suspend() { s.socket.Suspend() }

// FD is another descriptor of the socket, for the next Open.
func (s *Socket) FD() (int, error) { return s.socket.FD() }

// Close ends the service and takes the link away.
func (s *Socket) Close() {
	_ = s.socket.Close()
	if to, err := os.Readlink(s.paths.Log); err == nil && to == s.paths.Own {
		_ = os.Remove(s.paths.Log)
	}
	_ = os.Remove(s.paths.Own)
}

func (s *Socket) run() {
	defer close(s.lines)
	defer unix.Close(s.forward)
	for m := range s.socket.Messages() {
		m.Close()
		s.pass(&m)
		if text := text(m.Data); text != "" {
			s.lines <- Line{PID: m.PID, CgroupID: m.CgroupID, Text: text}
		}
	}
}

// pass gives a message to the syslog daemon, if there is one, in the name of its
// sender. One that does not keep up loses messages: nobody waits for it.
func (s *Socket) pass(m *notify.Message) {
	to := &unix.SockaddrUnix{Name: s.paths.Daemon}
	err := unix.Sendmsg(s.forward, m.Data, unix.UnixCredentials(&unix.Ucred{Pid: int32(m.PID), Uid: m.UID, Gid: m.GID}), to, unix.MSG_NOSIGNAL)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) {
		// The sender has ended, or may not be spoken for.
		_ = unix.Sendmsg(s.forward, m.Data, nil, to, unix.MSG_NOSIGNAL)
	}
}

// text makes a line of a message (RFC 3164, as syslog(3) writes it): the time is
// taken off, for the journal has its own, and of the priority the facility.
func text(data []byte) string {
	s := strings.TrimRight(string(data), "\n\x00")
	priority := 5 // notice, as logger(1)
	if rest, ok := strings.CutPrefix(s, "<"); ok {
		if number, rest, ok := strings.Cut(rest, ">"); ok && len(number) <= 3 {
			if n, err := strconv.ParseUint(number, 10, 8); err == nil {
				priority, s = int(n&7), rest
			}
		}
	}
	const stamp = "Jan _2 15:04:05 "
	if len(s) > len(stamp) && s[3] == ' ' && s[6] == ' ' && s[9] == ':' && s[12] == ':' && s[15] == ' ' {
		s = s[len(stamp):]
	}
	if s == "" {
		return ""
	}
	return fmt.Sprintf("<%d>%s", priority, s)
}
