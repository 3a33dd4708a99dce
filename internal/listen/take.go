package listen

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// Take finds the sockets of the unit among the open files of a process that got
// them from an earlier legiond, and opens them here too (pidfd_getfd(2)). It is
// all of them or none.
func Take(s *service.Socket, pid int) ([]int, bool) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false
	}
	defer unix.Close(pidfd)
	entries, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return nil, false
	}
	fds := make([]int, len(s.Listen))
	for i := range fds {
		fds[i] = -1
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		i := which(s, fd, fds)
		if i < 0 {
			unix.Close(fd)
			continue
		}
		fds[i] = fd
	}
	for _, fd := range fds {
		if fd < 0 {
			for _, fd := range fds {
				if fd >= 0 {
					unix.Close(fd)
				}
			}
			return nil, false
		}
	}
	return fds, true
}

// which finds the address that a descriptor is bound to; -1 for none, or one
// that is found already.
func which(s *service.Socket, fd int, found []int) int {
	for i, l := range s.Listen {
		if found[i] < 0 && isFor(l, fd) {
			return i
		}
	}
	return -1
}

func isFor(l service.Listen, fd int) bool {
	if l.Kind == service.ListenFIFO {
		var a, b unix.Stat_t
		return unix.Fstat(fd, &a) == nil && unix.Stat(l.Address, &b) == nil && a.Mode&unix.S_IFMT == unix.S_IFIFO && a.Dev == b.Dev && a.Ino == b.Ino
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != map[string]int{service.ListenStream: unix.SOCK_STREAM, service.ListenDatagram: unix.SOCK_DGRAM, service.ListenSeqpkt: unix.SOCK_SEQPACKET}[l.Kind] {
		return false
	}
	if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || (listening == 1) != (kind != unix.SOCK_DGRAM) {
		return false
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	a, err := unitfile.ParseSocketAddress(l.Address, hasIPv6())
	if err != nil {
		return false
	}
	if u, ok := bound.(*unix.SockaddrUnix); ok {
		return u.Name == a.Path
	}
	want, _, err := sockaddr(a)
	if err != nil {
		return false
	}
	return endpoint(bound) == endpoint(want)
}
