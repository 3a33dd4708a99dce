package runner

import (
	"errors"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/procstat"
	"legion.dev/legion/internal/service"
)

// entry is a process that is watched.
type entry struct {
	pid   int
	ticks uint64
	pidfd int // -1 once it is gone
	// adopted: it was there before anybody asked for it, so its end is told also
	// when nobody asks any more: who asks next may be too late to adopt it.
	adopted bool
	// silent: nobody wants to know of the exit any more.
	silent bool
	// starting: exec has not happened yet; an exit is kept in early until it
	// is known whether there was a start at all.
	starting bool
	early    *service.Exit
	// done, where set, gets the exit in place of Exits.
	done chan service.Exit
	// deadline: the process has ended but its parent has not collected it,
	// and only then does the kernel tell the exit status.
	deadline time.Time
}

func (e *entry) close() {
	if e.pidfd >= 0 {
		unix.Close(e.pidfd)
		e.pidfd = -1
	}
}

// collectWait bounds how long the exit status of a stranger's child is waited
// for, after the child has ended.
const collectWait = time.Second

// loop is the only reader of exits.
func (r *Runner) loop() {
	defer close(r.done)
	events := make([]unix.EpollEvent, 128)
	// Asked before each wait, too: Close may have come between the last one and
	// the reading of what woke it, which takes what Close had to say with it.
	for !r.closed() {
		n, err := unix.EpollWait(r.epoll, events, r.timeout())
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // only a closed descriptor: Close was called
		}
		if r.closed() {
			return
		}
		sweep := false
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == r.wake {
				var b [8]byte
				_, _ = unix.Read(r.wake, b[:])
				sweep = true
				continue
			}
			r.ended(int(ev.Fd))
		}
		r.overdue()
		if sweep {
			r.sweep()
		}
	}
}

// timeout is the epoll timeout in milliseconds: until the next deadline.
func (r *Runner) timeout() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	ms := -1
	if r.uncollected == 0 {
		return ms
	}
	for _, e := range r.entries {
		if e.deadline.IsZero() {
			continue
		}
		left := max(int(time.Until(e.deadline).Milliseconds())+1, 0)
		if ms < 0 || left < ms {
			ms = left
		}
	}
	return ms
}

// ended handles a pidfd that has become readable: its process has ended.
func (r *Runner) ended(pidfd int) {
	r.mu.Lock()
	e := r.entries[pidfd]
	if e == nil {
		r.mu.Unlock()
		return
	}
	exit, ok := collect(e)
	if !ok {
		// Not a child, and not collected by its parent yet. From here on wait
		// for the hang-up that tells so; EPOLLHUP needs no asking.
		if e.deadline.IsZero() {
			e.deadline = time.Now().Add(collectWait)
			r.uncollected++
			event := unix.EpollEvent{Fd: int32(pidfd)}
			_ = unix.EpollCtl(r.epoll, unix.EPOLL_CTL_MOD, pidfd, &event)
		}
		r.mu.Unlock()
		return
	}
	r.finish(e, exit)
}

// overdue gives up on the exit status of processes whose parents do not
// collect them.
func (r *Runner) overdue() {
	now := time.Now()
	for {
		r.mu.Lock()
		var late *entry
		for _, e := range r.entries {
			if r.uncollected == 0 {
				break
			}
			if !e.deadline.IsZero() && !now.Before(e.deadline) {
				late = e
				break
			}
		}
		if late == nil {
			r.mu.Unlock()
			return
		}
		exit, ok := collect(late)
		if !ok {
			exit = service.Exit{At: now, Unknown: true}
		}
		r.finish(late, exit)
	}
}

// finish forgets an entry and reports its exit; it releases mu, which must not
// be held while the report waits for its reader.
func (r *Runner) finish(e *entry, exit service.Exit) {
	delete(r.entries, e.pidfd)
	if !e.deadline.IsZero() {
		r.uncollected--
	}
	if r.byPID[e.pid] == e {
		delete(r.byPID, e.pid)
	}
	e.close()
	if e.starting {
		e.early = &exit
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	r.tell(e, exit)
}

// tell reports the exit of an entry to whoever wants it.
func (r *Runner) tell(e *entry, exit service.Exit) {
	r.mu.Lock()
	silent, done := e.silent, e.done
	r.mu.Unlock()
	switch {
	case done != nil:
		done <- exit
	case !silent:
		r.report(Exited{PID: e.pid, StartTicks: e.ticks, Exit: exit})
	}
}

func (r *Runner) report(x Exited) {
	select {
	case r.exits <- x: // also while it closes, where there is room
		return
	default:
	}
	select {
	case r.exits <- x:
	case <-r.closing:
	}
}

// sweep collects the children that no entry stands for.
func (r *Runner) sweep() {
	for r.sweepOne() {
	}
}

// sweepOne collects one child that has ended; false if there is none.
func (r *Runner) sweepOne() bool {
	var info siginfo
	r.forking.Lock()
	r.mu.Lock()
	if r.holding || waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT) != nil || info.pid == 0 {
		r.mu.Unlock()
		r.forking.Unlock()
		return false
	}
	pid := int(info.pid)
	if e := r.byPID[pid]; e != nil {
		r.forking.Unlock()
		exit, ok := collect(e)
		if !ok {
			exit = service.Exit{At: time.Now(), Unknown: true}
		}
		r.finish(e, exit)
		return true
	}
	ticks, _ := StartTicks(pid)
	err := waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG)
	collected := err == nil && info.pid != 0
	if collected {
		r.untold.Add(1)
	}
	r.mu.Unlock()
	r.forking.Unlock()
	if collected {
		r.report(Exited{PID: pid, StartTicks: ticks, Exit: info.exit(), Orphan: true})
	}
	return true
}

// collect finds out how a process ended, false if that cannot be told yet.
func collect(e *entry) (service.Exit, bool) {
	var info siginfo
	err := waitid(unix.P_PIDFD, e.pidfd, &info, unix.WEXITED|unix.WNOHANG)
	if err == nil && info.pid != 0 {
		return info.exit(), true
	}
	if status, ok := pidfdExit(e.pidfd); ok {
		return exitOf(syscall.WaitStatus(status)), true
	}
	// Before Linux 6.15 the status can be seen only while the process is a
	// zombie, and only by those who may trace it.
	if st, err := procstat.Read(e.pid); err == nil && uint64(st.Number(procstat.StartTime)) == e.ticks {
		if st.State() == 'Z' && st.Has(procstat.ExitCode) && mayTrace(e.pid) {
			return exitOf(syscall.WaitStatus(st.Number(procstat.ExitCode))), true
		}
		return service.Exit{}, false
	}
	return service.Exit{At: time.Now(), Unknown: true}, true
}

// mayTrace tells a true exit_code of 0 from one the kernel hides: it is shown
// to the owner of the process and to root.
func mayTrace(pid int) bool {
	if unix.Geteuid() == 0 {
		return true
	}
	var st unix.Stat_t
	return unix.Stat(procDir(pid), &st) == nil && int(st.Uid) == unix.Geteuid()
}

func exitOf(w syscall.WaitStatus) service.Exit {
	x := service.Exit{At: time.Now()}
	if w.Signaled() {
		x.Signal, x.Core = int(w.Signal()), w.CoreDump()
	} else {
		x.Code = w.ExitStatus()
	}
	return x
}

// siginfo is siginfo_t as waitid(2) fills it on 64-bit Linux.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

const (
	cldKilled = 2
	cldDumped = 3
)

func (i *siginfo) exit() service.Exit {
	x := service.Exit{At: time.Now()}
	if i.code == cldKilled || i.code == cldDumped {
		x.Signal, x.Core = int(i.status), i.code == cldDumped
	} else {
		x.Code = int(i.status)
	}
	return x
}

func waitid(idType, id int, info *siginfo, options int) error {
	for {
		_, _, e := unix.Syscall6(unix.SYS_WAITID, uintptr(idType), uintptr(id),
			uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return e
		}
		return nil
	}
}

// pidfdInfo is struct pidfd_info of <linux/pidfd.h>, first version.
type pidfdInfo struct {
	mask, cgroup                                                      uint64
	pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid uint32
	exitCode                                                          int32
}

const (
	pidfdGetInfo  = 0xc040ff0b // _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3
)

// pidfdExit asks the kernel (6.15 and later) for the wait status of a process
// that its own parent has collected.
func pidfdExit(pidfd int) (int32, bool) {
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	return info.exitCode, e == 0 && info.mask&pidfdInfoExit != 0
}
