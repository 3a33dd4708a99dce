// Package sandbox is the moment between fork and exec for what a plain spawn
// cannot set: legiond executes itself, Init applies a Spec to the new process
// and executes the daemon in its place. The daemon keeps the process ID, so
// nothing is left of the step in between.
package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// Argv0 marks a process that Init must take over.
const Argv0 = "(legion-sandbox)"

// The file descriptors that the parent hands over: the Spec as JSON, and a
// pipe on which nothing is written if exec succeeds, else one Failure.
const (
	SpecFD    = 3
	FailureFD = 4
	// JoinFD is the pidfd that Join is about; then there are no Files.
	JoinFD = 5
)

// Spec is what to apply before exec, in the order of the fields.
type Spec struct {
	// Service is named in nothing but the process's own title.
	Service string `json:"service"`
	// Enter are cgroups of version 1 to be put into.
	Enter []string `json:"enter,omitempty"`
	// Join are the kinds of namespace (CLONE_NEW…) to enter of the process that
	// JoinFD stands for; then none are made here.
	Join int `json:"join,omitempty"`
	// NetNS is the path of a network namespace to enter.
	NetNS string `json:"netns,omitempty"`
	// IPCNS is the path of an IPC namespace to enter.
	IPCNS string `json:"ipcns,omitempty"`
	// Mounts, where there are any or ReadOnlyRoot is set, make a mount
	// namespace. Sources and targets are there.
	Mounts       []Mount `json:"mounts,omitempty"`
	ReadOnlyRoot bool    `json:"readOnlyRoot,omitempty"`
	// Rlimits by name without "Limit", as in service.ExecContext.
	Rlimits        map[string]Rlimit `json:"rlimits,omitempty"`
	Nice           *int              `json:"nice,omitempty"`
	OOMScoreAdjust *int              `json:"oomScoreAdjust,omitempty"`
	UMask          int               `json:"umask"`
	Root           string            `json:"root,omitempty"`
	// Bounding are the capabilities to keep; nil keeps all.
	Bounding *[]string `json:"bounding,omitempty"`
	// Credential is whom to become; nil stays.
	Credential *Credential `json:"credential,omitempty"`
	Ambient    []string    `json:"ambient,omitempty"`
	Dir        string      `json:"dir,omitempty"`
	// DirOptional: stay in / if Dir cannot be entered.
	DirOptional     bool `json:"dirOptional,omitempty"`
	NoNewPrivileges bool `json:"noNewPrivileges,omitempty"`
	IgnoreSIGPIPE   bool `json:"ignoreSIGPIPE,omitempty"`

	Sandbox    *service.Sandbox    `json:"sandbox,omitempty"`
	Scheduling *service.Scheduling `json:"scheduling,omitempty"`
	// Writable are the service's own directories, which stay writable; Tmp the
	// ones that it sees as /tmp and /var/tmp.
	Writable []string  `json:"writable,omitempty"`
	Tmp      [2]string `json:"tmp,omitzero"`

	Path string `json:"path"`
	// Argv and Env need not be text, so they travel as bytes.
	Argv [][]byte `json:"argv"`
	Env  [][]byte `json:"env"`
	// NamePID adds SYSTEMD_EXEC_PID to Env.
	NamePID bool `json:"namePID,omitempty"`
	// Files is how many descriptors follow FailureFD; the program gets them
	// from 3 on, and LISTEN_PID.
	Files int `json:"files,omitempty"`
}

// Rlimit is one resource limit; all ones is infinity.
type Rlimit struct {
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Credential is a user, a group and supplementary groups, by number.
type Credential struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Failure says at which stage the way to exec ended.
type Failure struct {
	Stage string        `json:"stage"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Text  string        `json:"text"`
	// Code is systemd's exit status for the stage (systemd.exec(5), "Process
	// Exit Codes").
	Code int `json:"code"`
}

// The exit statuses of systemd.exec(5) that a failed start is known by.
const (
	CodeChdir        = 200
	CodeNice         = 201
	CodeExec         = 203
	CodeLimits       = 205
	CodeOOMAdjust    = 206
	CodeStdin        = 208
	CodeStdout       = 209
	CodeChroot       = 210
	CodeGroup        = 216
	CodeUser         = 217
	CodeCapabilities = 218
	CodeCgroup       = 219
	CodeNetwork      = 225
	CodeNamespace    = 226
	CodeNoNewPrivs   = 227
	CodeStateDir     = 238
	CodeRuntimeDir   = 233
	CodeIOPriority   = 212
	CodeTimerSlack   = 213
	CodeScheduler    = 214
	CodeAffinity     = 215
	CodeSecureBits   = 221
	CodePersonality  = 230
	CodeSeccomp      = 228
	CodeKeyring      = 237
	CodeCredentials  = 243
	CodeOther        = 1
)

// stage is one step on the way, with how to name its failure.
type stage struct {
	name string
	code int
	do   func() error
}

// Plain says whether a plain spawn can do all of it (package syscall).
func (s *Spec) Plain() bool {
	return len(s.Enter) == 0 && s.Join == 0 && s.NetNS == "" && s.IPCNS == "" && len(s.Mounts) == 0 && !s.ReadOnlyRoot && len(s.Rlimits) == 0 && s.Nice == nil && s.OOMScoreAdjust == nil &&
		s.UMask == 0o022 && s.Sandbox == nil && s.Scheduling == nil && s.Bounding == nil && !s.NoNewPrivileges && s.IgnoreSIGPIPE
}

// A program that links this package can be the sandbox step, whatever its main
// does: a test binary that did not know would start its tests once more.
func init() { Init() }

// Init does the step and does not return where the process is one; elsewhere
// it does nothing.
func Init() {
	if len(os.Args) == 0 || os.Args[0] != Argv0 {
		return
	}
	runtime.LockOSThread()
	unix.CloseOnExec(SpecFD)
	unix.CloseOnExec(FailureFD)
	unix.CloseOnExec(JoinFD) // where it is one of Files, it is moved anyway
	failure := apply()
	pipe := os.NewFile(uintptr(failureFD), "failure")
	_ = json.NewEncoder(pipe).Encode(failure)
	os.Exit(failure.Code)
}

// apply returns only if a stage failed.
func apply() Failure {
	var s Spec
	file := os.NewFile(SpecFD, "spec")
	data, err := io.ReadAll(file)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return failed(stage{"read what to start", CodeOther, nil}, err)
	}
	if err := s.takeFiles(file); err != nil {
		return failed(stage{"pass file descriptors", CodeOther, nil}, err)
	}
	for _, st := range s.stages() {
		if err := st.do(); err != nil {
			return failed(st, err)
		}
	}
	return failed(stage{fmt.Sprintf("execute %q", s.Path), CodeExec, nil}, s.exec())
}

// failureFD is where the pipe is now.
var failureFD = FailureFD

// takeFiles moves the descriptors that are passed to where they belong, and the
// pipe out of their way.
func (s *Spec) takeFiles(spec *os.File) error {
	_ = spec.Close()
	if s.Files == 0 {
		return nil
	}
	fd, err := unix.FcntlInt(FailureFD, unix.F_DUPFD_CLOEXEC, FailureFD+1+s.Files)
	if err != nil {
		return err
	}
	unix.Close(FailureFD)
	failureFD = fd
	for i := range s.Files {
		if err := unix.Dup3(FailureFD+1+i, SpecFD+i, 0); err != nil {
			return err
		}
	}
	for fd := SpecFD + s.Files; fd <= FailureFD+s.Files; fd++ {
		unix.Close(fd)
	}
	return nil
}

func failed(st stage, err error) Failure {
	f := Failure{Stage: st.name, Text: err.Error(), Code: st.code}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		f.Errno = errno
	}
	return f
}

func (s *Spec) stages() []stage {
	var out []stage
	add := func(want bool, name string, code int, do func() error) {
		if want {
			out = append(out, stage{name, code, do})
		}
	}
	for _, dir := range s.Enter {
		add(true, fmt.Sprintf("enter the cgroup %q", dir), CodeCgroup, func() error {
			return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0)
		})
	}
	add(s.Join != 0, "enter the namespaces of the service", CodeNamespace, func() error { return join(s.Join) })
	add(s.NetNS != "" && s.Join == 0, fmt.Sprintf("enter network namespace %q", s.NetNS), CodeNetwork, func() error { return enter(s.NetNS, unix.CLONE_NEWNET) })
	add(s.IPCNS != "" && s.Join == 0, fmt.Sprintf("enter IPC namespace %q", s.IPCNS), CodeNamespace, func() error { return enter(s.IPCNS, unix.CLONE_NEWIPC) })
	if (len(s.Mounts) > 0 || s.ReadOnlyRoot) && s.Join == 0 {
		for _, st := range s.mountStages() {
			add(true, st.name, st.code, st.do)
		}
	}
	if s.Scheduling != nil {
		out = append(out, schedulingStages(s.Scheduling)...)
	}
	if x := s.Sandbox; x != nil {
		add(x.KeyringMode != "", "set KeyringMode", CodeKeyring, func() error { return setKeyring(x.KeyringMode) })
		add(x.Personality != "", "set Personality", CodePersonality, func() error { return setPersonality(x.Personality) })
		if s.Join == 0 {
			out = append(out, s.namespaceStages()...)
		}
	}
	for name, limit := range s.Rlimits {
		add(true, "set Limit"+name, CodeLimits, func() error { return setLimit(name, limit) })
	}
	add(s.Nice != nil, "set Nice", CodeNice, func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, *s.Nice) })
	add(s.OOMScoreAdjust != nil, "set OOMScoreAdjust", CodeOOMAdjust, func() error {
		err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*s.OOMScoreAdjust)), 0)
		if errors.Is(err, os.ErrPermission) {
			return nil // in a container; systemd goes on without, too (LeastOOM)
		}
		return err
	})
	add(true, "set umask", CodeOther, func() error { unix.Umask(s.UMask); return nil })
	add(s.Root != "", fmt.Sprintf("change root to %q", s.Root), CodeChroot, func() error {
		if err := unix.Chroot(s.Root); err != nil {
			return err
		}
		return unix.Chdir("/")
	})
	bounding := s.bounding()
	add(bounding != nil, "set CapabilityBoundingSet", CodeCapabilities, func() error { return bound(*bounding) })
	add(s.Sandbox != nil && len(s.Sandbox.SecureBits) > 0, "set SecureBits", CodeSecureBits, func() error { return setSecureBits(s.Sandbox.SecureBits) })
	if c := s.Credential; c != nil {
		add(true, "set supplementary groups", CodeGroup, func() error { return setGroups(c.Groups) })
		add(true, fmt.Sprintf("set group %d", c.GID), CodeGroup, func() error { return setGID(c.GID) })
		add(true, fmt.Sprintf("set user %d", c.UID), CodeUser, func() error { return setUID(c.UID, len(s.Ambient) > 0) })
	}
	add(len(s.Ambient) > 0, "set AmbientCapabilities", CodeCapabilities, func() error { return ambient(s.Ambient) })
	add(s.Dir != "", fmt.Sprintf("change directory to %q", s.Dir), CodeChdir, func() error {
		err := unix.Chdir(s.Dir)
		if err != nil && s.DirOptional {
			return unix.Chdir("/")
		}
		return err
	})
	add(s.NoNewPrivileges, "set NoNewPrivileges", CodeNoNewPrivs, func() error {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	})
	return out
}

// exec replaces the process. The Go runtime's signal handlers turn into the
// default action with it; what is ignored stays ignored.
func (s *Spec) exec() error {
	if s.IgnoreSIGPIPE {
		signal.Ignore(syscall.SIGPIPE)
	} else {
		signal.Reset(syscall.SIGPIPE)
	}
	env := Strings(s.Env)
	if s.NamePID {
		env = append(env, "SYSTEMD_EXEC_PID="+strconv.Itoa(os.Getpid()))
	}
	if s.Files > 0 {
		env = append(env, "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	}
	list, err := s.filtersFor()
	if err != nil || len(list) == 0 {
		return errors.Join(err, syscall.Exec(s.Path, Strings(s.Argv), env))
	}
	path, err1 := syscall.BytePtrFromString(s.Path)
	argv, err2 := syscall.SlicePtrFromStrings(Strings(s.Argv))
	envp, err3 := syscall.SlicePtrFromStrings(env)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	// The Go runtime has raised the limit on open files for itself, and Exec
	// puts it back before it tries; here, nothing that is there.
	_ = syscall.Exec("", nil, nil)
	installed, e := execFiltered(list, path, &argv[0], &envp[0])
	if !installed {
		return fmt.Errorf("install a filter of system calls: %w", e)
	}
	return e
}

// Strings turns a list that has travelled into one to work with; Bytes is the
// way there.
func Strings(list [][]byte) []string {
	out := make([]string, len(list))
	for i, b := range list {
		out[i] = string(b)
	}
	return out
}

// Bytes is the reverse of Strings.
func Bytes(list []string) [][]byte {
	out := make([][]byte, len(list))
	for i, s := range list {
		out[i] = []byte(s)
	}
	return out
}

func enter(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, kind)
}

// join enters namespaces of the process behind JoinFD. A thread that shares its
// directories with others cannot enter a mount namespace (setns(2)).
func join(kinds int) error {
	if kinds&unix.CLONE_NEWNS != 0 {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
	}
	return unix.Setns(JoinFD, kinds)
}

var resources = map[string]int{
	"CPU": unix.RLIMIT_CPU, "FSIZE": unix.RLIMIT_FSIZE, "DATA": unix.RLIMIT_DATA,
	"STACK": unix.RLIMIT_STACK, "CORE": unix.RLIMIT_CORE, "RSS": unix.RLIMIT_RSS,
	"NOFILE": unix.RLIMIT_NOFILE, "AS": unix.RLIMIT_AS, "NPROC": unix.RLIMIT_NPROC,
	"MEMLOCK": unix.RLIMIT_MEMLOCK, "LOCKS": unix.RLIMIT_LOCKS,
	"SIGPENDING": unix.RLIMIT_SIGPENDING, "MSGQUEUE": unix.RLIMIT_MSGQUEUE,
	"NICE": unix.RLIMIT_NICE, "RTPRIO": unix.RLIMIT_RTPRIO, "RTTIME": unix.RLIMIT_RTTIME,
}

// setLimit goes through package syscall, which otherwise would put back the
// NOFILE limit that the Go runtime has raised for itself.
func setLimit(name string, l Rlimit) error {
	resource, ok := resources[name]
	if !ok {
		return fmt.Errorf("no such limit; known are CPU, FSIZE, DATA, STACK, CORE, RSS, NOFILE, AS, NPROC, MEMLOCK, LOCKS, SIGPENDING, MSGQUEUE, NICE, RTPRIO, RTTIME")
	}
	want := syscall.Rlimit{Cur: l.Soft, Max: l.Hard}
	err := syscall.Setrlimit(resource, &want)
	if errors.Is(err, syscall.EPERM) {
		// As systemd does: without the right to raise a hard limit, come as
		// near as possible.
		var have syscall.Rlimit
		if syscall.Getrlimit(resource, &have) == nil {
			want.Max = min(want.Max, have.Max)
			want.Cur = min(want.Cur, want.Max)
			return syscall.Setrlimit(resource, &want)
		}
	}
	return err
}
