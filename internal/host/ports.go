package host

import (
	"context"
	"errors"
	"io"
	"net"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
)

// What the loop needs of the packages that touch the machine. internal/app
// joins them.

// Processes starts processes, takes up those of an earlier legiond, and tells
// of their ends.
type Processes interface {
	Start(Request) (Process, error)
	// Exec runs a command beside a process to its end; started is called with
	// its process ID. When ctx ends first, it is killed.
	Exec(ctx context.Context, q ExecRequest, started func(pid int)) (service.Exit, error)
	// Adopt returns ErrGone if the process is not there any more.
	Adopt(pid int, startTicks uint64) (Process, error)
	Exits() <-chan Exited
	// Untold says whether an orphan was collected of which Exits has not told.
	Untold() bool
	// Origin tells what is known of where a process comes from; mark is in the
	// environment of the one that is looked for and of its descendants.
	Origin(pid int, mark string) Origin
	// Leads says whether the process began its session, as every process does
	// that Start has made.
	Leads(pid int) bool
	// Invocations lists processes by the INVOCATION_ID in their environment.
	Invocations() map[string][]int
	// Begin is called once all is adopted: orphans are collected from then on.
	Begin()
	// Suspend collects no more, and ends Exits with one of process 0.
	Suspend()
	// CleanUp removes the runtime directories and credentials that a service of
	// the group leaves behind, RemoveTmp its private /tmp and /var/tmp.
	CleanUp(group string, s *service.Service, restarting bool) error
	RemoveTmp(group, service string) error
	// Clean removes the directories of a context: those of what, in the words
	// of systemctl's --what=.
	Clean(c *service.ExecContext, what []string) error
	// Without names what of the context this machine cannot give.
	Without(c *service.ExecContext) []string
	// Release removes what the mounts of a group that has ended needed.
	Release(g *service.Group) error
}

// Origin is where a process of a service comes from.
type Origin int

// The origins.
const (
	// Stranger: it bears the mark of another start.
	Stranger Origin = iota
	// Heir: it bears the mark.
	Heir
	// Nameless: it bears no mark; a program may write over its environment.
	Nameless
	// Unborn: it was forked and has not executed its program yet.
	Unborn
	// Gone: it has ended, and nothing can be told of it any more.
	Gone
)

// ErrGone is the error of Adopt for a process that has ended.
var ErrGone = errors.New("the process is gone")

// Process is one that lives, or did when it was last looked at.
type Process interface {
	PID() int
	StartTicks() uint64
	// Signal takes a Linux number.
	Signal(number int) error
	// Close ends the watch for its exit.
	Close()
}

// Request is one process to start.
type Request struct {
	Group, Service string
	Run            uint64
	Command        service.Command
	Context        *service.ExecContext
	Env            []string
	Cgroup         string
	Stdout, Stderr string
	// Enter are directories of further cgroups to be put into.
	Enter []string
	// Files are passed from descriptor 3 on (sd_listen_fds(3)).
	Files []File
	// PIDs is the process whose PID namespace a container of it is in, 0 for
	// none.
	PIDs int
	// Tmp is the unit whose private /tmp it sees; empty is its own. Joined is a
	// process whose network and IPC namespaces it enters where it would make
	// such of its own; 0 for none.
	Tmp    string
	Joined int
	// Stdin, where not 0, is the standard input; with TTY a terminal, to be all
	// three and the process's own. It stays open here.
	Stdin int
	TTY   bool
}

// ExecRequest is a command to run in the namespaces of a process.
type ExecRequest struct {
	Request
	// Beside is that process, the main one of the service.
	Beside int
	// Stdio are the standard descriptors; TTY says that the first is a terminal,
	// to be the command's own.
	Stdio [3]int
	TTY   bool

	limits *service.Limits
}

// File is an open file descriptor with its name in LISTEN_FDNAMES.
type File struct {
	Name string
	FD   int
}

// Exited tells that a process has ended.
type Exited struct {
	PID        int
	StartTicks uint64
	Exit       service.Exit
}

// Cgroups tracks the processes of a service, however they forked. Paths are
// relative to legiond's own cgroup.
type Cgroups interface {
	// Create returns the absolute directory; empty where there are no cgroups.
	Create(path string) (dir string, err error)
	Pids(path string) ([]int, error)
	// Populated says whether Pids would list any. Where it does, Empty tells
	// when that is over.
	Populated(path string) bool
	// Signal sends to every process but those in except.
	Signal(path string, number int, except []int) error
	Kill(path string) error
	// Move puts a process that runs into the path.
	Move(path string, pid int) error
	// Freeze suspends every process, or lets them go on; the kernel needs a
	// moment for it.
	Freeze(path string, frozen bool) error
	// Limit bounds what a path may use. Processes of it have to enter the
	// directories as well; lost is what cannot be bounded.
	Limit(path string, r *service.Limits) (enter, lost []string)
	// Relimit changes what a path may use while its processes run.
	Relimit(path string, old, limits *service.Limits) (lost []string)
	// OOMKills counts those of the path's that died for want of memory.
	OOMKills(path string) int
	Remove(path string) error
	// Empty tells of cgroups whose last process has ended after Populated.
	Empty() <-chan string
	// Of finds which of the paths a process belongs to, the innermost.
	Of(pid int, paths []string) (string, bool)
	// ByID finds the path whose cgroup has the inode.
	ByID(id uint64) (string, bool)
	// Started and Exited tell of processes; where there are no cgroups they
	// are all there is to go by.
	Started(path string, pid int, invocation string)
	Exited(pid int)
	// Mode is "v2", or "none" with the reason; Lost is what services then do
	// without.
	Mode() (mode, reason string)
	Lost() []string
}

// Logs takes what services write, and gives it back.
type Logs interface {
	// Attach makes the FIFOs of a run, or takes them up again.
	Attach(group, service string, run uint64) (stdout, stderr string, err error)
	// Ended tells that a run is over, Detach that no other follows soon.
	Ended(group, service string)
	Detach(group, service string)
	Remove(group string) error
	// Write adds lines that did not come by the FIFOs.
	Write(group, service, text string) error
	Dir(group, service string) string
	Read(ctx context.Context, group, service string, q hostapi.LogQuery, w io.Writer) error
	Problems() []service.Warning
}

// Syslog receives what programs say on /dev/log and to systemd's journal.
type Syslog interface {
	Lines() <-chan SyslogLine
	// Suspend receives no more and closes Lines; the socket stays.
	Suspend()
}

// noSyslog is for a host where somebody else does so.
type noSyslog struct{}

func (noSyslog) Lines() <-chan SyslogLine { return nil }
func (noSyslog) Suspend()                 {}

// SyslogLine is what a process says by syslog(3); Text begins with its priority
// as sd-daemon(3) has it.
type SyslogLine struct {
	PID  int
	Text string
	// CgroupID is the inode of the sender's cgroup; 0 where it is not known.
	CgroupID uint64
}

// Message is one of sd_notify(3).
type Message struct {
	PID  int
	Note machine.Note
	// CgroupID is the inode of the sender's cgroup; 0 where it is not known.
	CgroupID uint64
	// FDs came with it. Store asks to keep them under the name Name, Remove to
	// close those kept under it.
	FDs           []int
	Store, Remove bool
	Name          string
}

// Notes receives sd_notify(3) messages at Path.
type Notes interface {
	Path() string
	Messages() <-chan Message
	// Suspend receives no more and closes Messages; the socket stays.
	Suspend()
}

// Keeper holds copies of descriptors where they outlive legiond, each under a
// key. What cannot be kept is logged.
type Keeper interface {
	Put(key string, f File)
	// Drop closes those that bear the name, or all where it is empty, and
	// returns when that is done.
	Drop(key, name string)
	Holds(key string) bool
	// Hear has the socket of Notes be held as well, and heard while there is no
	// legiond; Heard says that Handover.Notes have been dealt with.
	Hear()
	Heard()
}

// noKeeper is for a host whose services do not outlive legiond, either.
type noKeeper struct{}

func (noKeeper) Put(string, File)    {}
func (noKeeper) Drop(string, string) {}
func (noKeeper) Holds(string) bool   { return true }
func (noKeeper) Hear()               {}
func (noKeeper) Heard()              {}

// Consoles are what services read from that somebody may attach to, by the paths
// of their cgroups; they outlive legiond. See package console.
type Consoles interface {
	// Open makes that of a run, and gives the file for its process, which the
	// caller closes; 0 where an OCI runtime passes a terminal to the socket.
	Open(cgroup string, c *service.Console, socket, log string) (fd int, err error)
	// Resume takes up what an earlier legiond has left.
	Resume(cgroup string, files []File, log string) error
	Attach(cgroup string, input bool, conn net.Conn) error
	// End is for a run that is over.
	End(cgroup string)
	// Suspend ends all work on them and gives their files.
	Suspend() map[string][]File
}

// noConsoles is for a host that is given none.
type noConsoles struct{}

func (noConsoles) Open(string, *service.Console, string, string) (int, error) {
	return 0, errors.New("there are no consoles here")
}
func (noConsoles) Resume(string, []File, string) error { return nil }
func (noConsoles) Attach(string, bool, net.Conn) error {
	return errors.New("there are no consoles here")
}
func (noConsoles) End(string)                 {}
func (noConsoles) Suspend() map[string][]File { return nil }

// Probes asks a service how it is. Exec probes are run through start.
type Probes interface {
	Probe(ctx context.Context, p *service.Probe, t Target) (ok bool, message string)
}

// Target is the service that a probe asks.
type Target struct {
	Group, Service string
	Run            uint64
	Context        *service.ExecContext
	Cgroup         string
	// Tmp is as in Request.
	Tmp string
}

// Units reads the unit files.
type Units interface {
	Load() ([]service.Group, []service.Warning)
	// Find reads one unit, which may be an instance that nothing names.
	Find(name string) (service.Group, error)
	Path() []string
}

// Store keeps state; *store.Store is one.
type Store interface {
	Save(k store.Kind, name string, v any) error
	Delete(k store.Kind, name string) error
	Sync() error
}
