// Package runner is the only place that starts or signals a process. It knows
// processes by pidfd, so that a signal never reaches a stranger that got a
// recycled process ID, and reports every exit once: of children, of processes
// adopted after a crash, and of orphans that the kernel hands over.
package runner

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// Options for New; the zero value is what legiond uses.
type Options struct {
	// Executable is the program whose main calls sandbox.Init first; empty is
	// /proc/self/exe.
	Executable string
	// NoSubreaper leaves orphans to the machine's PID 1.
	NoSubreaper bool
	// HoldOrphans collects nothing that nobody has asked for before Begin: a
	// child of the program that this one was executed from is adopted first.
	HoldOrphans bool
}

// Runner starts processes and reports their exits.
type Runner struct {
	executable string
	passwd     accounts
	asks       *forkAsks // of the forkers; nil: fork on any thread
	ticks      ticks

	// forking is held for reading from each fork until its child is registered,
	// and for writing, before mu, by who must not take for an orphan or a
	// stranger a child that is about to be registered.
	forking sync.RWMutex

	mu      sync.Mutex
	entries map[int]*entry // by pidfd
	byPID   map[int]*entry
	// holding: orphans are not collected yet.
	holding bool
	// untold counts the orphans that were collected and are not told yet.
	untold atomic.Int64
	// uncollected counts the entries that have a deadline.
	uncollected int

	epoll   int
	wake    int // eventfd: look again
	exits   chan Exited
	sigchld chan os.Signal
	closing chan struct{}
	done    chan struct{}
	// forwarded is closed when no signal is turned into a wake any more.
	forwarded chan struct{}
}

// Exited tells that a process is gone.
type Exited struct {
	PID        int
	StartTicks uint64
	Exit       service.Exit
	// Orphan: nobody had asked for it; it was a descendant of a service whose
	// parent had died.
	Orphan bool
}

// Request is what to start and where.
type Request struct {
	Group, Service string
	Run            uint64
	Command        service.Command
	Context        *service.ExecContext // nil is all defaults
	// Env comes after the defaults and before the context's own: NOTIFY_SOCKET,
	// MAINPID and the like.
	Env []string
	// Cgroup is the absolute directory to be born into; empty is none.
	Cgroup string
	// Enter are directories of further cgroups to be put into before exec.
	Enter []string
	// Stdout and Stderr are the FIFOs of the journal; empty is /dev/null.
	Stdout, Stderr string
	Dirs           BaseDirs // zero is DefaultBaseDirs
	// Files are passed from descriptor 3 on, with LISTEN_FDS, LISTEN_FDNAMES
	// and LISTEN_PID in the environment (sd_listen_fds(3)). They stay open here.
	Files []File
	// PIDs is the process whose PID namespace a container of it is in, 0 for
	// none.
	PIDs int
	// Tmp is the unit whose private /tmp and /var/tmp it sees; empty is its own.
	Tmp string
	// Joined, where not 0, is a process that this Runner watches and whose
	// network and IPC namespaces are entered, instead of making such. One that
	// has ended, or has none but the host's, is not joined.
	Joined int

	// Stdio, where set, are the standard descriptors, in place of what the
	// context names. They stay open here.
	Stdio *[3]int
	// Stdin, where not 0, is the standard input in its place alone. It stays
	// open here.
	Stdin int
	// TTY: the standard input is a terminal, which becomes the process's own.
	TTY bool
	// Join, where not 0, is a process that this Runner watches and whose
	// namespaces are entered; then none are made, and no mounts.
	Join int
}

// File is an open file descriptor and its name in LISTEN_FDNAMES.
type File struct {
	Name string
	FD   int
}

// StartError says at which stage a start failed.
type StartError struct {
	Service string
	Stage   string
	Err     error
	// Code is the exit status that systemd gives a process that fails at this
	// stage: 203 for exec, 217 for the user (systemd.exec(5)).
	Code int
}

func (e *StartError) Error() string {
	return fmt.Sprintf("cannot start %s: %s: %v", e.Service, e.Stage, e.Err)
}

func (e *StartError) Unwrap() error { return e.Err }

// ErrGone is returned by Adopt for a process that is not there any more.
var ErrGone = errors.New("the process is gone")

// New makes a Runner, and the calling process a subreaper whose children
// ignore SIGPIPE and start with umask 0022. There is one Runner per program.
func New(o Options) (*Runner, error) {
	r := &Runner{
		executable: o.Executable,
		holding:    o.HoldOrphans,
		entries:    make(map[int]*entry),
		byPID:      make(map[int]*entry),
		exits:      make(chan Exited, 1024),
		sigchld:    make(chan os.Signal, 1),
		closing:    make(chan struct{}),
		done:       make(chan struct{}),
		forwarded:  make(chan struct{}),
	}
	if r.executable == "" {
		r.executable = "/proc/self/exe"
	}
	if !o.NoSubreaper && os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("cannot become subreaper: %w", err)
		}
	}
	cleanSignals()
	// Nor do children get what this process was carelessly started with.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	unix.Umask(0o022)
	var err error
	if r.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot watch processes: epoll_create1: %w", err)
	}
	if r.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(r.epoll)
		return nil, fmt.Errorf("cannot watch processes: eventfd: %w", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(r.wake)}
	if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, r.wake, &event); err != nil {
		return nil, fmt.Errorf("cannot watch processes: epoll_ctl: %w", err)
	}
	r.asks = newForkers(r.closing)
	signal.Notify(r.sigchld, syscall.SIGCHLD)
	go r.forwardSIGCHLD()
	go r.loop()
	return r, nil
}

// cleanSignals sees to it that children start with default dispositions, also
// where this process was started with some signals ignored (by nohup, or in
// the background of a shell). SIGPIPE alone stays ignored: IgnoreSIGPIPE=yes is
// the default of services.
func cleanSignals() {
	signal.Ignore(syscall.SIGPIPE)
	for _, s := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

// Exits reports what ended. It must be read: after 1024 unread exits no further
// one is collected until it is.
func (r *Runner) Exits() <-chan Exited { return r.exits }

// Untold says whether an exit was collected for which Told was not called yet,
// of those that nobody had asked for.
func (r *Runner) Untold() bool { return r.untold.Load() > 0 }

// Told is called by who reads Exits when an exit has come to where it goes.
func (r *Runner) Told(x Exited) {
	if x.Orphan {
		r.untold.Add(-1)
	}
}

// Close stops watching; processes go on.
func (r *Runner) Close() {
	if r.closed() {
		return
	}
	close(r.closing)
	signal.Stop(r.sigchld)
	r.poke()
	<-r.done
	<-r.forwarded
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.entries {
		e.close()
	}
	unix.Close(r.epoll)
	unix.Close(r.wake)
}

func (r *Runner) closed() bool {
	select {
	case <-r.closing:
		return true
	default:
		return false
	}
}

// Begin ends HoldOrphans.
func (r *Runner) Begin() {
	r.mu.Lock()
	r.holding = false
	r.mu.Unlock()
	r.poke()
}

// Suspend is Close; after what was collected before, Exits gives one more, of
// process 0.
func (r *Runner) Suspend() {
	r.Close()
	r.exits <- Exited{}
}

func (r *Runner) poke() {
	_, _ = unix.Write(r.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (r *Runner) forwardSIGCHLD() {
	defer close(r.forwarded)
	for {
		select {
		case <-r.sigchld:
			r.poke()
		case <-r.closing:
			return
		}
	}
}

// Process is a running process, held by its pidfd.
type Process struct {
	PID        int
	StartTicks uint64

	r *Runner
	e *entry
}

// Signal sends a signal to the process, or returns os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	if p.e.pidfd < 0 {
		return os.ErrProcessDone
	}
	err := unix.PidfdSendSignal(p.e.pidfd, sig, nil, 0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return os.ErrProcessDone
	default:
		return fmt.Errorf("cannot send %s to process %d: %w", unix.SignalName(sig), p.PID, err)
	}
}

// Close ends the watch: the exit of the process is not reported any more.
func (p *Process) Close() {
	p.r.mu.Lock()
	defer p.r.mu.Unlock()
	p.e.silent = !p.e.adopted
}

// Start starts a process and returns once exec has succeeded or failed. The
// error is a *StartError.
func (r *Runner) Start(q Request) (*Process, error) {
	e, err := r.start(&q, nil)
	if err != nil {
		return nil, err
	}
	return &Process{PID: e.pid, StartTicks: e.ticks, r: r, e: e}, nil
}

// Adopt takes up a process that an earlier legiond started, or that a service
// named as its main process. startTicks 0 accepts whoever has the process ID.
func (r *Runner) Adopt(pid int, startTicks uint64) (*Process, error) {
	r.forking.Lock()
	defer r.forking.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.byPID[pid]; e != nil && (startTicks == 0 || e.ticks == startTicks) {
		e.silent = false
		return &Process{PID: pid, StartTicks: e.ticks, r: r, e: e}, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("cannot adopt process %d: pidfd_open: %w", pid, err)
	}
	ticks, err := StartTicks(pid)
	if err != nil || (startTicks != 0 && ticks != startTicks) {
		unix.Close(fd)
		return nil, ErrGone
	}
	e := &entry{pid: pid, ticks: ticks, pidfd: fd, adopted: true}
	if err := r.watch(e); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot adopt process %d: %w", pid, err)
	}
	return &Process{PID: pid, StartTicks: ticks, r: r, e: e}, nil
}

// watch registers an entry; mu is held.
func (r *Runner) watch(e *entry) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(e.pidfd)}
	if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, e.pidfd, &event); err != nil {
		return fmt.Errorf("watch for its exit: %w", err)
	}
	r.entries[e.pidfd] = e
	r.byPID[e.pid] = e
	return nil
}

// title names the service in errors: the group for a unit, whose only service
// bears the same name, else both.
func (q *Request) title() string {
	if q.Service == "" || q.Service == q.Group {
		return q.Group
	}
	return filepath.Join(q.Group, q.Service)
}
