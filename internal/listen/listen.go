// Package listen opens the sockets and FIFOs of socket units, tells when one of
// them has something to take, and finds those that a service kept open while
// legiond was away (systemd.socket(5)).
package listen

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// Open opens every address of the socket unit, in order. Where one cannot be
// opened, none is.
func Open(s *service.Socket) ([]int, error) {
	var fds []int
	open := func() error {
		for _, l := range s.Listen {
			fd, err := openOne(s, l)
			if err != nil {
				return fmt.Errorf("cannot listen on %s: %w", l.Address, err)
			}
			fds = append(fds, fd)
		}
		return nil
	}
	err := inNamespace(s.NetworkNamespacePath, open)
	if err == nil {
		err = links(s)
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, err
	}
	return fds, nil
}

// Close closes what Open has opened and, with RemoveOnStop=, removes the names
// in the file system.
func Close(s *service.Socket, fds []int) error {
	for _, fd := range fds {
		unix.Close(fd)
	}
	if !s.RemoveOnStop {
		return nil
	}
	var errs []error
	for _, l := range s.Listen {
		if filepath.IsAbs(l.Address) {
			errs = append(errs, remove(l.Address))
		}
	}
	for _, link := range s.Symlinks {
		errs = append(errs, remove(link))
	}
	return errors.Join(errs...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// inNamespace runs f on a thread that is in the network namespace, and then
// gives the thread up: it cannot be brought back for certain.
func inNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("cannot enter the network namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		if err != nil {
			done <- fmt.Errorf("cannot enter the network namespace %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

func openOne(s *service.Socket, l service.Listen) (int, error) {
	if l.Kind == service.ListenFIFO {
		return openFIFO(s, l.Address)
	}
	a, err := unitfile.ParseSocketAddress(l.Address, hasIPv6())
	if err != nil {
		return -1, err
	}
	to, family, err := sockaddr(a)
	if err != nil {
		return -1, err
	}
	kind := map[string]int{service.ListenStream: unix.SOCK_STREAM, service.ListenDatagram: unix.SOCK_DGRAM, service.ListenSeqpkt: unix.SOCK_SEQPACKET}[l.Kind]
	flags := unix.SOCK_CLOEXEC
	if s.Accept { // else it is the service that takes, which expects to wait
		flags |= unix.SOCK_NONBLOCK
	}
	fd, err := unix.Socket(family, kind|flags, 0)
	if err != nil {
		return -1, err
	}
	err = configure(s, fd, family, kind)
	if err == nil && filepath.IsAbs(a.Path) {
		err = bindPath(s, fd, a.Path, to)
	} else if err == nil {
		err = unix.Bind(fd, to)
	}
	if err == nil && kind != unix.SOCK_DGRAM {
		backlog := s.Backlog
		if backlog == 0 {
			backlog = 1<<31 - 1 // the kernel bounds it (net.core.somaxconn)
		}
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func hasIPv6() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
}

func sockaddr(a unitfile.SocketAddress) (unix.Sockaddr, int, error) {
	switch {
	case a.Path != "":
		return &unix.SockaddrUnix{Name: a.Path}, unix.AF_UNIX, nil
	case a.VSock:
		return &unix.SockaddrVM{CID: a.CID, Port: a.VSockPort}, unix.AF_VSOCK, nil
	case a.IP.Is4():
		return &unix.SockaddrInet4{Port: int(a.Port), Addr: a.IP.As4()}, unix.AF_INET, nil
	}
	to := &unix.SockaddrInet6{Port: int(a.Port), Addr: a.IP.As16()}
	if a.Interface != "" {
		if n, err := strconv.ParseUint(a.Interface, 10, 32); err == nil {
			to.ZoneId = uint32(n)
		} else if i, err := net.InterfaceByName(a.Interface); err == nil {
			to.ZoneId = uint32(i.Index)
		} else {
			return nil, 0, fmt.Errorf("interface %s: %w", a.Interface, err)
		}
	}
	return to, unix.AF_INET6, nil
}

// configure sets the options of a socket before it is bound.
func configure(s *service.Socket, fd, family, kind int) error {
	set := func(want bool, level, option, value int) error {
		if !want {
			return nil
		}
		return unix.SetsockoptInt(fd, level, option, value)
	}
	internet := family == unix.AF_INET || family == unix.AF_INET6
	tcp := internet && kind == unix.SOCK_STREAM
	only := 0
	if s.BindIPv6Only == "ipv6-only" {
		only = 1
	}
	return errors.Join(
		set(internet, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		set(internet && s.ReusePort, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
		set(internet && s.FreeBind, unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
		set(family == unix.AF_INET6 && s.BindIPv6Only != "" && s.BindIPv6Only != "default", unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only),
		set(tcp && s.KeepAlive, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
		set(tcp && s.NoDelay, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		set(s.Broadcast, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		set(family == unix.AF_UNIX && s.PassCredentials, unix.SOL_SOCKET, unix.SO_PASSCRED, 1),
	)
}

// bindPath binds a socket to a name in the file system. What has the name is
// taken away: a socket outlives its process there.
func bindPath(s *service.Socket, fd int, path string, to unix.Sockaddr) error {
	if err := parents(s, path); err != nil {
		return err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, to); err != nil {
		return err
	}
	return own(s, path)
}

func openFIFO(s *service.Socket, path string) (int, error) {
	if err := parents(s, path); err != nil {
		return -1, err
	}
	if err := unix.Mkfifo(path, mode(s.Mode, 0o666)); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		err = errors.New("it is there and is no FIFO")
	}
	if err == nil {
		err = errors.Join(own(s, path), unix.SetNonblock(fd, false))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func mode(m, fallback uint32) uint32 {
	if m == 0 {
		return fallback
	}
	return m
}

func parents(s *service.Socket, path string) error {
	return os.MkdirAll(filepath.Dir(path), os.FileMode(mode(s.DirectoryMode, 0o755)))
}

// own gives the name its mode and its owner.
func own(s *service.Socket, path string) error {
	if err := unix.Chmod(path, mode(s.Mode, 0o666)); err != nil {
		return err
	}
	if s.User == "" && s.Group == "" {
		return nil
	}
	uid, gid := -1, -1
	if s.User != "" {
		u, err := user.Lookup(s.User)
		if err != nil {
			u, err = user.LookupId(s.User)
		}
		if err != nil {
			return fmt.Errorf("SocketUser=%s: %w", s.User, err)
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
	}
	if s.Group != "" {
		g, err := user.LookupGroup(s.Group)
		if err != nil {
			g, err = user.LookupGroupId(s.Group)
		}
		if err != nil {
			return fmt.Errorf("SocketGroup=%s: %w", s.Group, err)
		}
		gid, _ = strconv.Atoi(g.Gid)
	}
	return os.Lchown(path, uid, gid)
}

// links makes the Symlinks= to the one name in the file system.
func links(s *service.Socket) error {
	for _, l := range s.Listen {
		if !filepath.IsAbs(l.Address) {
			continue
		}
		for _, link := range s.Symlinks {
			if err := parents(s, link); err != nil {
				return err
			}
			if err := remove(link); err != nil {
				return err
			}
			if err := os.Symlink(l.Address, link); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// Accept takes one connection; ErrNone where none waits, also of a socket that
// would block, as those are that services get whole. The text names both ends,
// for the name of the instance.
func Accept(fd int) (conn int, ends string, err error) {
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n == 0 || err != nil {
		return -1, "", ErrNone
	}
	conn, from, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		return -1, "", ErrNone
	case err != nil:
		return -1, "", fmt.Errorf("cannot take a connection: %w", err)
	}
	if _, ok := from.(*unix.SockaddrUnix); ok {
		if c, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ends = fmt.Sprintf("%d-%d", c.Pid, c.Uid)
		}
		return conn, ends, nil
	}
	to, err := unix.Getsockname(conn)
	if err != nil {
		return conn, "unknown", nil
	}
	return conn, endpoint(to) + "-" + endpoint(from), nil
}

// ErrNone tells that no connection waits.
var ErrNone = errors.New("no connection waits")

func endpoint(a unix.Sockaddr) string {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr).Unmap()
		return ip.String() + ":" + strconv.Itoa(a.Port)
	case *unix.SockaddrVM:
		return fmt.Sprintf("%d:%d", a.CID, a.Port)
	}
	return "unknown"
}
