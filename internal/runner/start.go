package runner

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/bundle"
	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// launch is a request with everything resolved.
type launch struct {
	spec   sandbox.Spec
	argv   []string
	env    []string
	stdio  stdio
	cgroup int // descriptor, -1 for none
	passed []File
	tty    bool
	// join is the pidfd of Request.Join, -1 for none.
	join int
	// joined are namespaces of Request.Joined, held until the start is done.
	joined []int
	// plain: a plain spawn can do all of spec.
	plain bool
}

func (l *launch) close() {
	l.stdio.close()
	for _, fd := range append([]int{l.cgroup, l.join}, l.joined...) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// start resolves and spawns. Where a plain spawn fails, the sandbox step is
// asked to do the same, because it can tell at which stage.
func (r *Runner) start(q *Request, done chan service.Exit) (*entry, error) {
	l := launch{cgroup: -1, join: -1, tty: q.TTY}
	defer l.close()
	err := r.prepare(q, &l)
	if err == nil {
		err = r.join(q, &l)
	}
	if err == nil {
		r.joinKinds(q, &l)
	}
	if err != nil {
		err.Service = q.title()
		return nil, err
	}
	if l.plain {
		if e, err := r.spawn(l.spec.Path, l.argv, l.plainAttr(), &entry{done: done}); err == nil {
			return e, nil
		}
	}
	e, err := r.spawnSandbox(&l, done)
	if err != nil {
		err.Service = q.title()
		return nil, err
	}
	return e, nil
}

// prepare resolves names, opens files and makes directories.
func (r *Runner) prepare(q *Request, l *launch) *StartError {
	c := q.context()
	if c.DynamicUser && c.User == "" && os.Geteuid() == 0 {
		c.User = dynamicName(q.Group)
	}
	id, fail := r.passwd.identify(&c)
	if fail != nil {
		return fail
	}
	if fail := makeDirectories(&c, q.Dirs, id); fail != nil {
		return fail
	}
	if c.Container != nil && q.Join == 0 {
		if err := bundle.Prepare(c.Container, c.Mounts, q.Cgroup, q.PIDs); err != nil {
			return &StartError{Stage: "make its container ready", Err: err, Code: sandbox.CodeNamespace}
		}
		c.Mounts = nil // they are the container's
		c.WorkingDirectory = c.Container.Bundle
	}
	if len(c.Mounts) > 0 && q.Join == 0 {
		if err := mounts.Prepare(q.Group, rootOf(&c), c.Mounts); err != nil {
			return &StartError{Stage: "make its mounts ready", Err: err, Code: sandbox.CodeNamespace}
		}
	}
	if fail := q.openStdio(&c, id, &l.stdio); fail != nil {
		return fail
	}
	if fail := l.stdio.belong(c.Container); fail != nil {
		return fail
	}
	env, fail := q.environ(&c, id)
	if fail != nil {
		return fail
	}
	if len(c.Credentials) > 0 {
		dir, fail := q.makeCredentials(&c, id)
		if fail != nil {
			return fail
		}
		env = unitfile.SetEnvironment(env, "CREDENTIALS_DIRECTORY="+dir)
	}
	if q.Cgroup != "" {
		fd, err := unix.Open(q.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &StartError{Stage: fmt.Sprintf("open cgroup %q", q.Cgroup), Err: err, Code: sandbox.CodeCgroup}
		}
		l.cgroup = fd
	}
	root := c.RootDirectory
	if q.Join != 0 {
		root = filepath.Join(procDir(q.Join), "root")
	}
	path, err := findCommand(q.Command.Path, root, env, c.SearchPath)
	if err != nil {
		return &StartError{Stage: fmt.Sprintf("find command %q", q.Command.Path), Err: err, Code: sandbox.CodeExec}
	}
	argv := q.Command.Argv
	if len(argv) == 0 {
		argv = []string{q.Command.Path}
	}
	if !q.Command.NoExpand {
		argv = unitfile.ExpandArgv(argv, func(name string) (string, bool) { return lookup(env, name) })
	}
	l.spec = specOf(&c, id)
	if err := q.sandbox(&c, l); err != nil {
		return err
	}
	l.spec.Enter = q.Enter
	l.spec.Service, l.spec.Path, l.argv, l.env = q.title(), path, argv, env
	l.spec.NamePID = !c.CleanEnvironment
	l.spec.Files, l.passed = len(q.Files), q.Files
	l.plain = len(q.Files) == 0 && l.spec.Plain() && !(l.spec.DirOptional && !enterable(l.spec.Root, l.spec.Dir))
	return nil
}

// context is the request's context as far as the command's prefixes let it
// apply (systemd.service(5), "Command lines").
func (q *Request) context() service.ExecContext {
	var c service.ExecContext
	if q.Context != nil {
		c = *q.Context
	}
	if q.Command.FullPrivileges || q.Command.KeepUser {
		c.User, c.Group, c.SupplementaryGroups, c.DynamicUser = "", "", nil, false
	}
	if q.Command.FullPrivileges {
		c.NoNewPrivileges, c.CapabilityBoundingSet, c.AmbientCapabilities = false, nil, nil
		c.RootDirectory, c.Mounts, c.ReadOnlyRoot, c.Sandbox, c.Container = "", nil, false, nil, nil
	}
	return c
}

func specOf(c *service.ExecContext, id identity) sandbox.Spec {
	s := sandbox.Spec{
		NetNS: c.NetworkNamespacePath, Nice: c.Nice, OOMScoreAdjust: c.OOMScoreAdjust,
		UMask: umaskOf(c), Root: c.RootDirectory, Bounding: c.CapabilityBoundingSet,
		Credential: id.credential, Ambient: c.AmbientCapabilities,
		Mounts: mountsOf(c), ReadOnlyRoot: c.ReadOnlyRoot,
		NoNewPrivileges: c.NoNewPrivileges, IgnoreSIGPIPE: c.IgnoreSIGPIPE == nil || *c.IgnoreSIGPIPE,
	}
	s.Root = rootOf(c)
	for name, l := range maps.All(c.Rlimits) {
		if s.Rlimits == nil {
			s.Rlimits = make(map[string]sandbox.Rlimit)
		}
		s.Rlimits[name] = sandbox.Rlimit{Soft: l.Soft, Hard: l.Hard}
	}
	own, _ := os.UserHomeDir()
	s.Dir, s.DirOptional = workingDirectory(c, id.home, own, os.Geteuid() == 0)
	return s
}

// workingDirectory is where a command runs. A legiond without privileges runs
// its own user's services in that user's home, where it can be entered, as
// systemd's user manager does.
func workingDirectory(c *service.ExecContext, home, own string, root bool) (dir string, optional bool) {
	dir, optional = c.WorkingDirectory, c.WorkingDirectoryOptional
	switch {
	case dir == "~":
		dir = cmp.Or(home, own)
	case dir == "" && !root:
		dir, optional = own, true
	}
	return cmp.Or(dir, "/"), optional
}

// rootOf is the service's root directory, empty where it is the host's.
func rootOf(c *service.ExecContext) string {
	if filepath.Clean("/"+c.RootDirectory) == "/" {
		return ""
	}
	return c.RootDirectory
}

// mountsOf are the context's mounts, outer ones first.
func mountsOf(c *service.ExecContext) []sandbox.Mount {
	var out []sandbox.Mount
	for _, m := range c.Mounts {
		out = append(out, sandbox.Mount{
			Source: m.Source, SubPath: m.SubPath, Target: m.Target,
			ReadOnly: m.ReadOnly, Recursive: m.Recursive, Propagation: m.Propagation, Data: m.Image != nil,
		})
	}
	slices.SortStableFunc(out, func(a, b sandbox.Mount) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	return out
}

func enterable(root, dir string) bool {
	st, err := os.Stat(filepath.Join(root, dir))
	return err == nil && st.IsDir()
}

// plainAttr is spec in the terms of a plain spawn.
func (l *launch) plainAttr() *syscall.ProcAttr {
	sys := l.sysAttr()
	sys.Chroot = l.spec.Root
	if c := l.spec.Credential; c != nil {
		sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	for _, name := range l.spec.Ambient {
		if n, err := sandbox.Capability(name); err == nil {
			sys.AmbientCaps = append(sys.AmbientCaps, n)
		}
	}
	return &syscall.ProcAttr{Dir: l.spec.Dir, Env: l.env, Files: l.files(), Sys: sys}
}

func (l *launch) sysAttr() *syscall.SysProcAttr {
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: l.tty}
	if l.cgroup >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, l.cgroup
	}
	if l.users() {
		sandbox.Users(l.spec.Sandbox.PrivateUsers, l.spec.Credential, sys)
	}
	return sys
}

func (l *launch) files() []uintptr {
	return []uintptr{uintptr(l.stdio.fds[0]), uintptr(l.stdio.fds[1]), uintptr(l.stdio.fds[2])}
}

// spawn forks, executes and registers the process as e.
func (r *Runner) spawn(path string, argv []string, attr *syscall.ProcAttr, e *entry) (*entry, error) {
	r.forking.RLock()
	defer r.forking.RUnlock()
	pid, pidfd, born, err := r.fork(path, argv, attr)
	if err != nil {
		return nil, err
	}
	if pidfd < 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
		return nil, errors.New("the kernel gave no pidfd; Legion needs Linux 5.4 or later")
	}
	ticks, err := r.ticks.of(pid, born)
	if err != nil {
		ticks = 0 // it has ended and been collected elsewhere; its pidfd tells
	}
	e.pid, e.ticks, e.pidfd = pid, ticks, pidfd
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.watch(e); err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		unix.Close(pidfd)
		return nil, err
	}
	return e, nil
}

// fork forks and executes; forking is held, so that nobody else collects the
// child.
func (r *Runner) fork(path string, argv []string, attr *syscall.ProcAttr) (pid, pidfd int, born span, err error) {
	pidfd = -1
	if r.asks == nil {
		attr.Sys.PidFD = &pidfd
		pid, born, err = forkExec(path, argv, attr)
		return pid, pidfd, born, err
	}
	ask := forkAsk{path: path, argv: argv, attr: attr, done: make(chan struct{})}
	r.asks.put(&ask)
	select {
	case <-ask.done:
	case <-r.closing:
		if r.asks.withdraw(&ask) {
			return 0, -1, span{}, errors.New("legiond is about to end")
		}
		<-ask.done // a fork that has begun comes to its end
	}
	if ask.err != nil {
		return 0, -1, span{}, ask.err
	}
	if pidfd, err = unix.PidfdOpen(ask.pid, 0); err != nil {
		return ask.pid, -1, ask.born, nil
	}
	return ask.pid, pidfd, ask.born, nil
}

// spawnSandbox starts through package sandbox and waits for exec.
func (r *Runner) spawnSandbox(l *launch, done chan service.Exit) (*entry, *StartError) {
	other := func(stage string, err error) *StartError {
		return &StartError{Stage: stage, Err: err, Code: sandbox.CodeOther}
	}
	l.spec.Argv, l.spec.Env = sandbox.Bytes(l.argv), sandbox.Bytes(l.env)
	spec, tell, err := l.handOver()
	if err != nil {
		return nil, other("hand over what to start", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		unix.Close(spec)
		tell.Close() // nil, too
		return nil, other("make a pipe", err)
	}
	report := os.NewFile(uintptr(pipe[0]), "report")
	defer report.Close()
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1"},
		Files: append(l.files(), uintptr(spec), uintptr(pipe[1])), Sys: l.sysAttr(),
	}
	if l.join >= 0 {
		attr.Files = append(attr.Files, uintptr(l.join))
	}
	for _, f := range l.passed {
		attr.Files = append(attr.Files, uintptr(f.FD))
	}
	e, err := r.spawn(r.executable, []string{sandbox.Argv0, l.spec.Service}, attr, &entry{starting: true, done: done})
	unix.Close(pipe[1])
	unix.Close(spec)
	if tell != nil {
		r.tellBorn(e, &l.spec, tell)
	}
	if err != nil {
		return nil, forkError(err)
	}
	var f sandbox.Failure
	executed := json.NewDecoder(report).Decode(&f) != nil // end of file: exec has closed the pipe
	r.mu.Lock()
	early := e.early
	if !executed {
		e.silent, e.done = true, nil
	}
	e.starting = false
	r.mu.Unlock()
	if early != nil {
		go r.tell(e, *early) // not before Start has returned, if that can be
	}
	if executed {
		return e, nil
	}
	fail := &StartError{Stage: f.Stage, Err: errors.New(f.Text), Code: f.Code}
	if f.Errno != 0 {
		fail.Err = f.Errno
	}
	return nil, fail
}

func forkError(err error) *StartError {
	stage, code := "fork", sandbox.CodeOther
	switch {
	case errors.Is(err, unix.EAGAIN):
		err = fmt.Errorf("%w: the limit on processes is reached (pids.max of the cgroup, ulimit -u, or kernel.pid_max)", err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENODEV):
		stage, code = "enter the cgroup", sandbox.CodeCgroup
	}
	return &StartError{Stage: stage, Err: err, Code: code}
}

// specFile puts the spec in a memory file, positioned at its start.
func specFile(s *sandbox.Spec) (int, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("legion-spec", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	for off := 0; off < len(data); {
		n, err := unix.Pwrite(fd, data[off:], int64(off))
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		off += n
	}
	return fd, nil
}
