package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// Exec runs a command to its end; started, which may be nil, is called with its
// process ID once it is executed. When ctx ends first, the process, its process
// group and its descendants are killed, and the error is the context's.
func (r *Runner) Exec(ctx context.Context, q Request, started func(pid int)) (service.Exit, error) {
	done := make(chan service.Exit, 1)
	e, err := r.start(&q, done)
	if err != nil {
		return service.Exit{}, err
	}
	if started != nil {
		started(e.pid)
	}
	return r.await(ctx, e, done)
}

// await waits for the end of a process that leads its process group.
func (r *Runner) await(ctx context.Context, e *entry, done <-chan service.Exit) (service.Exit, error) {
	select {
	case exit := <-done:
		return exit, nil
	case <-ctx.Done():
	}
	// The program of an OCI runtime has the command as its child, in another
	// session, and cannot pass this signal on.
	held := holdDescendants(e.pid)
	_ = unix.Kill(-e.pid, unix.SIGKILL) // its own session, so its own process group
	_ = (&Process{r: r, e: e}).Signal(syscall.SIGKILL)
	for _, fd := range held {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
	}
	return <-done, context.Cause(ctx)
}

// namespaces are the kinds that a process can have apart from legiond.
var namespaces = map[string]int{
	"mnt": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP,
}

// join takes hold of the process that the request joins, and finds out which of
// its namespaces are not legiond's.
func (r *Runner) join(q *Request, l *launch) *StartError {
	if q.Join == 0 {
		return nil
	}
	fail := func(err error) *StartError {
		return &StartError{Stage: fmt.Sprintf("enter the namespaces of process %d", q.Join), Err: err, Code: sandbox.CodeNamespace}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.byPID[q.Join]
	if e == nil || e.pidfd < 0 {
		return fail(errors.New("it has ended"))
	}
	fd, err := unix.FcntlInt(uintptr(e.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	l.join = fd
	for name, kind := range namespaces {
		own, err1 := os.Readlink(filepath.Join("/proc/self/ns", name))
		its, err2 := os.Readlink(filepath.Join(procDir(q.Join), "ns", name))
		if err := errors.Join(err1, err2); err != nil {
			return fail(err)
		}
		if own != its {
			l.spec.Join |= kind
		}
	}
	if l.spec.Join != 0 {
		l.plain = false
	}
	return nil
}
