package hostd

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/bundle"
	"legion.dev/legion/internal/cgroup"
	"legion.dev/legion/internal/console"
	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitdir"
)

// The adapters between what the loop asks for and what the packages offer.

type processes struct {
	r     *runner.Runner
	exits chan host.Exited
}

func newProcesses(r *runner.Runner) *processes {
	p := &processes{r: r, exits: make(chan host.Exited, 256)}
	go func() {
		for x := range r.Exits() {
			p.exits <- host.Exited{PID: x.PID, StartTicks: x.StartTicks, Exit: x.Exit}
			r.Told(x)
		}
	}()
	return p
}

func (p *processes) Begin()   { p.r.Begin() }
func (p *processes) Suspend() { p.r.Suspend() }

type process struct{ p *runner.Process }

func (p process) PID() int           { return p.p.PID }
func (p process) StartTicks() uint64 { return p.p.StartTicks }
func (p process) Signal(n int) error { return p.p.Signal(syscall.Signal(n)) }
func (p process) Close()             { p.p.Close() }

func (p *processes) Exits() <-chan host.Exited { return p.exits }

// Untold is asked by the only reader of exits.
func (p *processes) Untold() bool { return p.r.Untold() || len(p.exits) > 0 }

func (p *processes) Start(q host.Request) (host.Process, error) {
	s, err := p.r.Start(request(q))
	if err != nil {
		return nil, err
	}
	return process{s}, nil
}

func (p *processes) Exec(ctx context.Context, q host.ExecRequest, started func(pid int)) (service.Exit, error) {
	r := request(q.Request)
	r.Join, r.Stdio, r.TTY = q.Beside, &q.Stdio, q.TTY
	return p.r.Exec(ctx, r, started)
}

func request(q host.Request) runner.Request {
	r := runner.Request{
		Group: q.Group, Service: q.Service, Run: q.Run, Command: q.Command, Context: q.Context, Env: q.Env,
		Cgroup: q.Cgroup, Enter: q.Enter, Stdout: q.Stdout, Stderr: q.Stderr, Files: files(q.Files), PIDs: q.PIDs,
		Tmp: q.Tmp, Joined: q.Joined,
	}
	if q.TTY {
		r.Stdio, r.TTY = &[3]int{q.Stdin, q.Stdin, q.Stdin}, true
	} else {
		r.Stdin = q.Stdin
	}
	return r
}

func files(list []host.File) []runner.File {
	var out []runner.File
	for _, f := range list {
		out = append(out, runner.File(f))
	}
	return out
}

func (p *processes) Adopt(pid int, ticks uint64) (host.Process, error) {
	s, err := p.r.Adopt(pid, ticks)
	if errors.Is(err, runner.ErrGone) {
		return nil, host.ErrGone
	}
	if err != nil {
		return nil, err
	}
	return process{s}, nil
}

func (p *processes) Leads(pid int) bool {
	session, err := unix.Getsid(pid)
	return err == nil && session == pid
}

func (p *processes) CleanUp(group string, s *service.Service, restarting bool) error {
	err := runner.RemoveRuntime(&s.Exec, runner.DefaultBaseDirs(), restarting)
	if len(s.Exec.Credentials) > 0 {
		err = errors.Join(err, runner.RemoveCredentials(group, s.Name, runner.DefaultBaseDirs()))
	}
	return err
}

func (p *processes) Clean(c *service.ExecContext, what []string) error {
	return runner.RemoveDirectories(c, runner.DefaultBaseDirs(), what)
}

func (p *processes) RemoveTmp(group, name string) error { return runner.RemovePrivateTmp(group, name) }

func (p *processes) Without(c *service.ExecContext) []string { return runner.LostProtections(c) }

func (p *processes) Release(g *service.Group) error {
	var problems []error
	for i := range g.Services {
		c := &g.Services[i].Exec
		if c.Container != nil {
			problems = append(problems, bundle.Release(c.Container, c.Mounts), cgroup.Forget(c.Container.ID))
			continue
		}
		problems = append(problems, mounts.Release(g.Name, c.Mounts))
	}
	return errors.Join(problems...)
}

type tracker struct{ t *cgroup.Tree }

func (c tracker) Create(path string) (string, error)      { return c.t.Create(path) }
func (c tracker) Pids(path string) ([]int, error)         { return c.t.Pids(path) }
func (c tracker) Populated(path string) bool              { return c.t.Populated(path) }
func (c tracker) Kill(path string) error                  { return c.t.Kill(path) }
func (c tracker) Remove(path string) error                { return c.t.Remove(path) }
func (c tracker) Empty() <-chan string                    { return c.t.Empty() }
func (c tracker) Started(path string, pid int, id string) { c.t.Track(path, pid, id) }
func (c tracker) Exited(pid int)                          { c.t.Exited(pid) }

func (c tracker) ByID(id uint64) (string, bool) { return c.t.ByID(id) }

func (c tracker) Of(pid int, paths []string) (string, bool) { return c.t.Of(pid, paths) }

func (c tracker) OOMKills(path string) int { return c.t.OOMKills(path) }

func (c tracker) Move(path string, pid int) error { return c.t.Move(path, pid) }

func (c tracker) Freeze(path string, frozen bool) error { return c.t.Freeze(path, frozen) }

func (c tracker) Relimit(path string, old, limits *service.Limits) (lost []string) {
	return c.t.Relimit(path, old, limits)
}

func (c tracker) Limit(path string, r *service.Limits) (enter, lost []string) {
	return c.t.Limit(path, r)
}

func (c tracker) Signal(path string, n int, except []int) error {
	_, err := c.t.Signal(path, syscall.Signal(n), except...)
	return err
}

func (c tracker) Lost() []string {
	if mode, _ := c.t.Mode(); mode == cgroup.None {
		return []string{cgroup.Lost}
	}
	return nil
}

func (c tracker) Mode() (string, string) {
	mode, reason := c.t.Mode()
	return string(mode), reason
}

type messages struct {
	s *notify.Socket
	c chan host.Message
}

func newMessages(s *notify.Socket) messages {
	m := messages{s: s, c: make(chan host.Message, 64)}
	go func() {
		defer close(m.c)
		for x := range s.Messages() {
			m.c <- messageOf(x)
		}
	}()
	return m
}

func messageOf(x notify.Message) host.Message {
	return host.Message{
		PID: x.PID, Note: noteOf(x.Vars), CgroupID: x.CgroupID, FDs: x.FDs,
		Store: x.Vars["FDSTORE"] == "1", Remove: x.Vars["FDSTOREREMOVE"] == "1", Name: x.Vars["FDNAME"],
	}
}

func (m messages) Suspend()                      { m.s.Suspend() }
func (m messages) Path() string                  { return m.s.Address() }
func (m messages) Messages() <-chan host.Message { return m.c }

// noteOf reads the variables of sd_notify(3).
func noteOf(vars map[string]string) machine.Note {
	micros := func(name string) time.Duration {
		n, err := strconv.ParseInt(vars[name], 10, 64)
		if err != nil || n < 0 || n > int64(time.Duration(1<<62)/time.Microsecond) {
			return 0
		}
		return time.Duration(n) * time.Microsecond
	}
	n := machine.Note{
		Ready: vars["READY"] == "1", Reloading: vars["RELOADING"] == "1", Stopping: vars["STOPPING"] == "1",
		Watchdog: vars["WATCHDOG"] == "1", WatchdogTrigger: vars["WATCHDOG"] == "trigger",
		WatchdogEvery: micros("WATCHDOG_USEC"), ExtendTimeout: micros("EXTEND_TIMEOUT_USEC"),
	}
	n.Text, n.HasText = vars["STATUS"], vars["STATUS"] != ""
	if pid, err := strconv.Atoi(vars["MAINPID"]); err == nil && pid > 0 {
		n.MainPID = pid
	}
	return n
}

// units reads the unit files, and says what it has to remark on them: each
// remark once, however often they are read.
type units struct {
	path []string
	boot string
	// initd is the directory of init.d scripts; empty for none.
	initd string
	// made is nil where no generators are run.
	made *generators
	log  *slog.Logger
	said *sync.Map // of service.Warning
}

func (u units) Path() []string { return u.path }

func (u units) options() unitdir.Options {
	o := unitdir.Options{Options: unitdir.ThisMachine(), Boot: u.boot, Initd: u.initd}
	if u.boot == "all" {
		o.Boot, o.Enabled = "", true
	}
	return o
}

func (u units) Find(name string) (service.Group, error) {
	return unitdir.Find(unitdir.WithControl(u.path), name, u.options())
}

func (u units) Load() ([]service.Group, []service.Warning) {
	if u.made != nil {
		u.made.run()
	}
	busy()
	o := u.options()
	groups, problems := unitdir.Load(unitdir.WithControl(u.path), o)
	say := func(level slog.Level, w service.Warning) {
		if _, before := u.said.LoadOrStore(w, true); !before {
			u.log.Log(context.Background(), level, w.Text, "file", w.File, "line", w.Line)
		}
	}
	for _, g := range groups {
		for _, w := range g.Warnings {
			say(slog.LevelWarn, w)
		}
	}
	for _, p := range problems {
		say(slog.LevelError, p)
	}
	return groups, problems
}

// consoles is package console as the loop wants it.
type consoles struct{ *console.Consoles }

// newConsoles keeps them over the death of legiond, where there is a keeper.
func newConsoles(k *keeping) consoles {
	if k == nil {
		return consoles{console.New(nil)}
	}
	return consoles{console.New(keptConsoles{k})}
}

func (c consoles) Resume(key string, list []host.File, log string) error {
	var own []console.File
	for _, f := range list {
		own = append(own, console.File(f))
	}
	return c.Consoles.Resume(key, own, log)
}

func (c consoles) Suspend() map[string][]host.File {
	out := map[string][]host.File{}
	for key, list := range c.Consoles.Suspend() {
		for _, f := range list {
			out[key] = append(out[key], host.File(f))
		}
	}
	return out
}

// keptConsoles tells consoles apart from what else is kept.
type keptConsoles struct{ k *keeping }

func (c keptConsoles) Put(key string, f console.File) { c.k.Put(host.ConsoleKey+key, host.File(f)) }
func (c keptConsoles) Drop(key, name string)          { c.k.Drop(host.ConsoleKey+key, name) }
