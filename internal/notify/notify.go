// Package notify receives what services say of themselves by sd_notify(3):
// datagrams on a unix socket, with the sender's credentials from the kernel.
package notify

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is one datagram.
type Message struct {
	// PID, UID and GID are the sender's, as the kernel vouches for them.
	PID      int
	UID, GID uint32
	// Vars are its assignments: READY, STATUS, MAINPID, WATCHDOG …
	Vars map[string]string
	// Data is the whole of it, on a socket of ListenRaw; Vars is then nil.
	Data []byte
	// CgroupID is the inode of the sender's cgroup, where the kernel tells it:
	// also of a process that has ended meanwhile (Linux 6.16).
	CgroupID uint64
	// FDs are the descriptors that came along. Close closes them: a sender that
	// waits at a barrier (BARRIER=1) goes on then, so close a message after it
	// has been dealt with.
	FDs []int
}

// Close closes the descriptors that came with the message.
func (m *Message) Close() {
	for _, fd := range m.FDs {
		unix.Close(fd)
	}
	m.FDs = nil
}

// Socket receives messages.
type Socket struct {
	path     string // as it was asked for
	address  string // what fits into an address
	conn     *net.UnixConn
	max      int  // what is longer is ignored
	raw      bool // of ListenRaw
	messages chan Message
	closing  chan struct{}
}

// Listen binds the socket at path, in the place of one that an earlier legiond
// has left there. Every user may send to it.
func Listen(path string) (*Socket, error) { return listen(path, page, false) }

// page is what a message of sd_notify(3) may be long, as systemd has it.
const page = 4096

// ListenRaw binds a socket whose datagrams, up to max bytes long, are not
// assignments; they are in Data.
func ListenRaw(path string, max int) (*Socket, error) { return listen(path, max, true) }

func listen(path string, max int, raw bool) (*Socket, error) {
	address, err := Short(path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for notifications on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot listen for notifications: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen for notifications on %s: %w", path, err)
	}
	s := &Socket{path: path, address: address, conn: conn, max: max, raw: raw, messages: make(chan Message, 64), closing: make(chan struct{})}
	if err := s.setUp(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("cannot listen for notifications on %s: %w", path, err)
	}
	go s.receive()
	return s, nil
}

func (s *Socket) setUp() error {
	if err := os.Chmod(s.path, 0o777); err != nil { // connecting needs the right to write
		return err
	}
	_ = s.conn.SetReadBuffer(1 << 20)
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSPIDFD, 1) // Linux 6.5
	})
	return errors.Join(err, inner)
}

// Suspend ends Messages after what has been received; the socket stays, and
// File hands it over.
func (s *Socket) Suspend() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

// File is a copy of the socket's descriptor, for Resume.
func (s *Socket) File() (*os.File, error) { return s.conn.File() }

// FD is another descriptor of the socket; unlike File it leaves the socket's own
// mode as it is.
func (s *Socket) FD() (fd int, err error) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	if e := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) }); e != nil {
		return -1, e
	}
	return fd, err
}

// Resume goes on with a socket that was bound at path before; it takes file.
func Resume(path string, file *os.File) (*Socket, error) { return resume(path, file, page, false) }

// ResumeRaw is Resume for a socket of ListenRaw.
func ResumeRaw(path string, file *os.File, max int) (*Socket, error) {
	return resume(path, file, max, true)
}

func resume(path string, file *os.File, max int, raw bool) (*Socket, error) {
	address, err := Short(path)
	if err != nil {
		return nil, err
	}
	c, err := net.FilePacketConn(file)
	if err != nil {
		return nil, fmt.Errorf("cannot go on with the notification socket: %w", err)
	}
	_ = file.Close()
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("cannot go on with the notification socket: it is no unix socket")
	}
	s := &Socket{path: path, address: address, conn: conn, max: max, raw: raw, messages: make(chan Message, 64), closing: make(chan struct{})}
	go s.receive()
	return s, nil
}

// Address is what to put into NOTIFY_SOCKET: the path, or a shorter name of it
// where the path does not fit into a socket address.
func (s *Socket) Address() string { return s.address }

// Messages are delivered in the order they were sent. The channel is closed
// with the socket.
func (s *Socket) Messages() <-chan Message { return s.messages }

// Close removes the socket.
func (s *Socket) Close() error {
	select {
	case <-s.closing:
		return nil
	default:
	}
	close(s.closing)
	return s.conn.Close()
}

func (s *Socket) receive() {
	defer close(s.messages)
	usual, oob := make([]byte, min(s.max, usualMax)), make([]byte, 1024)
	for {
		buf := usual
		if s.max > usualMax {
			if n := s.size(); n > usualMax {
				buf = make([]byte, min(n, s.max))
			}
		}
		n, oobn, flags, _, err := s.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			continue
		}
		m, ok := parse(oob[:oobn])
		if s.raw {
			m.Data = bytes.Clone(buf[:n])
		} else {
			m.Vars = assignments(buf[:n])
		}
		if !ok || flags&unix.MSG_TRUNC != 0 {
			m.Close()
			continue // systemd ignores what is longer, too
		}
		select {
		case s.messages <- m:
		case <-s.closing:
			m.Close()
			return
		}
	}
}

// usualMax is up to which length of a datagram room for it is kept ready.
const usualMax = 64 << 10

// size waits for a datagram and is its length; 0 where none comes.
func (s *Socket) size() (n int) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN)
	})
	return n
}

// parse reads a datagram's control messages.
func parse(oob []byte) (Message, bool) {
	var m Message
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return m, false
	}
	known := false
	for _, c := range controls {
		if c.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch c.Header.Type {
		case unix.SCM_RIGHTS:
			if fds, err := unix.ParseUnixRights(&c); err == nil {
				for _, fd := range fds {
					unix.CloseOnExec(fd)
				}
				m.FDs = append(m.FDs, fds...)
			}
		case scmPidFD:
			if fds, err := unix.ParseUnixRights(&unix.SocketControlMessage{Header: unix.Cmsghdr{Level: unix.SOL_SOCKET, Type: unix.SCM_RIGHTS}, Data: c.Data}); err == nil && len(fds) == 1 {
				m.CgroupID = CgroupID(fds[0])
				unix.Close(fds[0])
			}
		case unix.SCM_CREDENTIALS:
			if cred, err := unix.ParseUnixCredentials(&c); err == nil && cred.Pid > 0 {
				m.PID, m.UID, m.GID, known = int(cred.Pid), cred.Uid, cred.Gid, true
			}
		}
	}
	return m, known
}

func assignments(data []byte) map[string]string {
	vars := make(map[string]string)
	for line := range strings.SplitSeq(string(data), "\n") {
		if name, value, ok := strings.Cut(line, "="); ok {
			vars[name] = value
		}
	}
	return vars
}

// scmPidFD is SCM_PIDFD of <linux/socket.h>.
const scmPidFD = 4

// CgroupID asks a pidfd for the cgroup of its process (<linux/pidfd.h>); 0 where
// the kernel does not tell.
func CgroupID(pidfd int) uint64 {
	var info struct {
		mask, cgroup uint64
		rest         [48]byte
	}
	const getInfo, maskCgroup, maskExit = 0xc040ff0b, 1 << 2, 1 << 3
	info.mask = maskCgroup | maskExit
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), getInfo, uintptr(unsafe.Pointer(&info)))
	if e != 0 || info.mask&maskCgroup == 0 {
		return 0
	}
	return info.cgroup
}

// maxAddress is what fits into sockaddr_un with its final zero byte.
const maxAddress = 107

// Short gives a path of a socket that fits into a socket address: the path
// itself or, where it is too long, one through a symbolic link to its
// directory, which is made in /run or, for ordinary users, below
// XDG_RUNTIME_DIR or the temporary directory. The link stays, because services
// know the name for as long as they run.
func Short(path string) (string, error) {
	if len(path) <= maxAddress {
		return path, nil
	}
	dir, base := filepath.Split(filepath.Clean(path))
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", dir, err)
	}
	place := os.TempDir()
	if v := os.Getenv("XDG_RUNTIME_DIR"); v != "" {
		place = v
	}
	if os.Geteuid() == 0 {
		place = "/run"
	}
	// The directory's device and inode name it for as long as it exists.
	id := strconv.FormatUint(st.Dev, 36) + "-" + strconv.FormatUint(st.Ino, 36)
	link := filepath.Join(place, fmt.Sprintf("legion-%d-%s", os.Geteuid(), id))
	short := filepath.Join(link, base)
	if len(short) > maxAddress {
		return "", fmt.Errorf("the path is %d bytes long and a socket's may have %d: use a shorter directory", len(path), maxAddress)
	}
	if err := makeLink(filepath.Clean(dir), link); err != nil {
		return "", err
	}
	return short, nil
}

// makeLink makes sure that link is ours and points to dir: in a directory where
// everybody writes, somebody else's link would lead elsewhere.
func makeLink(dir, link string) error {
	have, err := os.Readlink(link)
	if errors.Is(err, os.ErrNotExist) {
		return os.Symlink(dir, link)
	}
	if err != nil {
		return err
	}
	st, err := os.Lstat(link)
	if err != nil {
		return err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to somebody else; remove it", link)
	}
	if have == dir {
		return nil
	}
	if err := os.Remove(link); err != nil {
		return err
	}
	return os.Symlink(dir, link)
}

// Send is sd_notify(3): it tells the service manager of this process, if there
// is one that asked for it. sent is false where NOTIFY_SOCKET is not set.
func Send(state string) (sent bool, err error) {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return false, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return false, fmt.Errorf("cannot notify the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return false, fmt.Errorf("cannot notify the service manager: %w", err)
	}
	return true, nil
}
