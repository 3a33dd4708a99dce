package runner

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// joinKinds takes hold of those namespaces of another unit's process that the
// launch would make anew. In a user namespace there is no right to enter them.
func (r *Runner) joinKinds(q *Request, l *launch) {
	x := l.spec.Sandbox
	if q.Joined == 0 || q.Join != 0 || x == nil || x.PrivateUsers != "" {
		return
	}
	if x.PrivateNetwork && l.spec.NetNS == "" {
		l.spec.NetNS = r.hold(l, q.Joined, "net")
	}
	if x.PrivateIPC {
		l.spec.IPCNS = r.hold(l, q.Joined, "ipc")
	}
}

// hold opens a namespace of a process, unless it is legiond's own, and returns
// the path by which the new process finds it; empty for none. Nothing that ends
// meanwhile takes it away.
func (r *Runner) hold(l *launch, pid int, kind string) string {
	r.mu.Lock() // so that nobody collects it, and its number stays its own
	defer r.mu.Unlock()
	if r.byPID[pid] == nil {
		return ""
	}
	path := filepath.Join(procDir(pid), "ns", kind)
	own, err1 := os.Readlink(filepath.Join("/proc/self/ns", kind))
	its, err2 := os.Readlink(path)
	if err1 != nil || err2 != nil || own == its {
		return ""
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	l.joined = append(l.joined, fd)
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}
