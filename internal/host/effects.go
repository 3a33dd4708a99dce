package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// carryOut does one thing that a machine asks for.
func (h *Host) carryOut(u *unit, e machine.Effect, now time.Time) {
	switch e := e.(type) {
	case machine.Transition:
		h.transition(u, e, now)
	case machine.Spawn:
		h.thawed(u.g)
		h.spawn(u, e)
	case machine.Signal:
		h.thawed(u.g)
		h.signal(u, e)
	case machine.FindMain:
		h.findMain(u, e)
	case machine.RunProbe:
		h.probe(u, e)
	case machine.CleanUp:
		h.cleanUp(u, e)
	}
}

func (h *Host) transition(u *unit, t machine.Transition, now time.Time) {
	entry := hostapi.Transition{
		At: now, Group: u.g.spec.Name, Service: u.spec.Name, Run: t.Run, From: t.From, To: t.To, Reason: t.Reason,
	}
	u.g.remember(entry)
	if h.o.Events != nil {
		if err := h.o.Events(entry); err != nil {
			h.o.Log.Error("cannot write the event journal", "error", err)
		}
	}
	u.leaveHook(t.To)
	h.seen(u.g, t)
	h.closes(u, t.To)
	h.jobSees(u, t)
	if way := u.spec.Restart.Way; t.To == service.AutoRestart && (way == service.RestartNormal || way == service.RestartDebug) {
		h.restarts(u, t.Result)
	}
	if t.To == service.Failed && t.Result == service.StartLimitHit {
		h.startLimited(u.g)
	}
}

// spawn starts a process. It runs beside the loop: exec may have to wait for a
// disk.
func (h *Host) spawn(u *unit, e machine.Spawn) {
	if h.reexec {
		return // the intent is written down, and the next legiond carries it out
	}
	list := map[service.State][]service.Command{
		service.StartPre: u.spec.StartPre, service.Start: u.spec.Start, service.StartPost: u.spec.StartPost,
		service.Reload: u.spec.Reload, service.Stop: u.spec.Stop, service.StopPost: u.spec.StopPost,
	}[e.Kind]
	switch c := list[e.Index]; {
	case c.HTTP != nil:
		h.ask(u, e, c)
		return
	case c.Adopt != nil:
		h.adoptStranger(u, e, c.Adopt)
		return
	case c.Listen:
		h.open(u, e)
		return
	}
	spec := u.spec // which a new definition replaces and does not change
	if e.Main || e.Kind == service.Start {
		u.fixed = spec.Fixed
	}
	q := Request{
		Group: u.g.spec.Name, Service: spec.Name, Run: e.Run, Command: list[e.Index], Context: u.context(), Env: h.environment(u, e),
	}
	if e.Kind == service.Start {
		q.PIDs = u.holder()
		files, err := dup(h.passed(u))
		if err != nil {
			h.note(u.g, "cannot pass its file descriptors", err)
		}
		q.Files = files
	}
	shared := h.share(u, e)
	q.Tmp = h.guests[q.Group]
	path, group, together := u.cgroup, u.g.spec.Name, u.g.spec.Resources
	h.spawning++
	h.starts.add(func() {
		defer hangUp(q.Files)
		defer shared.end()
		var p Process
		var lost []string
		ooms := 0
		dir, err := h.o.Cgroups.Create(path)
		h.point("before a fork")
		if err == nil {
			q.Enter, lost = h.o.Cgroups.Limit(path, spec.Resources)
			if path != group {
				above, more := h.o.Cgroups.Limit(group, together)
				q.Enter, lost = append(beside(above, q.Enter), q.Enter...), append(more, lost...)
			}
			q.Cgroup = dir
			q.Stdout, q.Stderr, err = h.o.Logs.Attach(q.Group, q.Service, q.Run)
		}
		if err == nil && (e.Main || e.Kind == service.Start) { // a container's runtime is not its main process
			err = emptyLastWords(spec.TerminationMessage)
		}
		var values []*string
		if err == nil && e.Kind == service.Start {
			if values, err = readVariables(spec.Exec.FileVariables); err == nil {
				q.Context = withVariables(&spec.Exec, values)
				q.Command = withWords(q.Command, spec.Exec.FileVariables, values)
			}
		}
		if err == nil && e.Kind == service.Start && spec.Exec.Console != nil {
			if err = h.openConsole(path, spec, &q); q.Stdin != 0 {
				defer closeAll([]int{q.Stdin})
			}
		}
		if err != nil {
			err = fmt.Errorf("cannot start %s: %w", u.title(), err)
		} else {
			if spec.Resources != nil {
				// It may be killed before the news of its start is told.
				ooms = h.o.Cgroups.OOMKills(path)
			}
			q.Joined = shared.joinable()
			if p, err = h.o.Processes.Start(q); err == nil {
				shared.is(p)
			}
		}
		h.point("after a fork")
		h.later(func() {
			u.unbounded = lost
			u.g.bounds, u.bounds = together, spec.Resources
			if e.Main || e.Kind == service.Start {
				u.ooms, u.values = ooms, values
			}
			h.spawned(u, e, dir, p, err)
		})
	})
}

// holder is the process whose PID namespace the service's container is in; 0
// where it has one of its own, or that process does not run.
func (u *unit) holder() int {
	if c := u.spec.Exec.Container; c != nil && c.PIDs != "" {
		for _, o := range u.g.services {
			if m := o.in.Main; o.spec.Name == c.PIDs && m != nil {
				return m.PID
			}
		}
	}
	return 0
}

// beside leaves out the directories that one of within lies in: who enters that
// one is in both.
func beside(dirs, within []string) []string {
	return slices.DeleteFunc(dirs, func(d string) bool {
		return slices.ContainsFunc(within, func(w string) bool { return filepath.Dir(w) == d })
	})
}

// remedy says what limit of legiond's own kept a service from its start.
func remedy(err error) string {
	switch {
	case errors.Is(err, unix.EMFILE):
		return ": legiond may open no more (ulimit -n, or LimitNOFILE= of its own unit)"
	case errors.Is(err, unix.ENFILE):
		return ": the machine may open no more (sysctl fs.file-max)"
	}
	return ""
}

func (h *Host) spawned(u *unit, e machine.Spawn, dir string, p Process, err error) {
	h.spawning--
	if dir != "" {
		u.dir = dir
	}
	if err != nil {
		h.step(u, machine.Event{Kind: machine.SpawnFailed, Run: e.Run, Proc: e.Proc, Message: err.Error() + remedy(err)})
	} else {
		h.own(u, e.Run, e.Proc, p)
		h.step(u, machine.Event{Kind: machine.Spawned, Run: e.Run, Proc: e.Proc, PID: p.PID(), StartTicks: p.StartTicks()})
		if e.Main {
			h.watchName(u)
		}
	}
	// What it said comes before its end.
	h.notifiedEarly()
	if err == nil {
		h.exitedEarly(p.PID())
	}
}

// own notes whose process it is.
func (h *Host) own(u *unit, run, proc uint64, p Process) {
	u.procs[proc] = p
	h.o.Cgroups.Started(u.cgroup, p.PID(), h.invocation(u, run))
	h.owners[p.PID()] = owner{u: u, proc: proc, run: run, ticks: p.StartTicks()}
}

// notifiedEarly takes the messages that came before the news of a start: a
// process may be ready before its parent has had a word of it.
func (h *Host) notifiedEarly() {
	notes := h.earlyNotes
	h.earlyNotes = nil
	for _, m := range notes {
		h.notified(m)
	}
}

func (h *Host) exitedEarly(pid int) {
	if x, ok := h.early.byPID[pid]; ok {
		h.early.forget(x)
		h.exited(x)
	}
}

// invocation names a run to the processes in it (INVOCATION_ID of
// systemd.exec(5)); an adopting legiond knows them by it. Several may run on a
// machine, each with a state directory of its own.
func (h *Host) invocation(u *unit, run uint64) string {
	if c := &u.called; c.id == "" || c.run != run {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s\x00%d", h.o.BootID, h.o.StateDir, u.g.spec.Name, u.spec.Name, run))
		c.run, c.id = run, hex.EncodeToString(sum[:16])
	}
	return u.called.id
}

// processMark is in the environment of one process, and of those that it starts.
func (h *Host) processMark(u *unit, run, proc uint64) string {
	return fmt.Sprintf("LEGION_PROCESS=%s.%d", h.invocation(u, run), proc)
}

func (h *Host) environment(u *unit, e machine.Spawn) []string {
	env := []string{"INVOCATION_ID=" + h.invocation(u, e.Run), h.processMark(u, e.Run, e.Proc)}
	s := u.spec
	if s.Type == service.Notify || s.Type == service.NotifyReload || s.Watchdog > 0 || s.NotifyAccess != "" && s.NotifyAccess != service.NotifyNone {
		h.o.Keeper.Hear()
		env = append(env, "NOTIFY_SOCKET="+h.o.Notes.Path())
	}
	if s.Watchdog > 0 && e.Kind == service.Start {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(s.Watchdog.Microseconds(), 10))
	}
	if s.Restart.Way == service.RestartDebug && u.in.Restarts > 0 {
		env = append(env, "DEBUG_INVOCATION=1")
	}
	if m := u.in.Main; m != nil && m.PID != 0 && !e.Main {
		env = append(env, "MAINPID="+strconv.Itoa(m.PID))
	}
	if e.Kind == service.Stop || e.Kind == service.StopPost {
		env = append(env, "SERVICE_RESULT="+string(u.in.Result))
		if n := u.in.Newest; n != nil && n.Exit != nil && n.Number == e.Run {
			code, status := "exited", strconv.Itoa(n.Exit.Code)
			if n.Exit.Signal != 0 {
				code, status = "killed", strings.TrimPrefix(machine.SignalName(n.Exit.Signal), "SIG")
				if n.Exit.Core {
					code = "dumped"
				}
			}
			env = append(env, "EXIT_CODE="+code, "EXIT_STATUS="+status)
		}
	}
	return env
}

// signal sends to the processes that the machine knows and, where it asks for
// all, to the others in the cgroup: to each once.
func (h *Host) signal(u *unit, e machine.Signal) {
	const sigkill, sigcont, sighup = 9, 18, 1
	if e.All && e.Number == sigkill {
		if err := h.o.Cgroups.Kill(u.cgroup); err != nil {
			h.note(u.g, "cannot kill the cgroup", err)
		}
	}
	send := func(n int) {
		for _, pid := range e.PIDs {
			if err := h.signalKnown(u, pid, n); err != nil && !errors.Is(err, os.ErrProcessDone) {
				h.note(u.g, "cannot send "+machine.SignalName(n), err)
			}
		}
		if !e.All || e.Number == sigkill {
			return
		}
		if err := h.o.Cgroups.Signal(u.cgroup, n, e.PIDs); err != nil {
			h.note(u.g, "cannot send "+machine.SignalName(n)+" to the cgroup", err)
		}
	}
	send(e.Number)
	if e.Cont {
		send(sigcont)
	}
	if e.Hup {
		send(sighup)
	}
}

func (h *Host) signalKnown(u *unit, pid, n int) error {
	if o, ok := h.owners[pid]; ok && o.u == u {
		return u.procs[o.proc].Signal(n)
	}
	return os.ErrProcessDone
}

func (h *Host) probe(u *unit, e machine.RunProbe) {
	p := map[machine.ProbeKind]*service.Probe{
		machine.StartupProbe: u.spec.Startup, machine.ReadinessProbe: u.spec.Readiness, machine.LivenessProbe: u.spec.Liveness,
	}[e.Kind]
	spec := *u.spec
	t := Target{Group: u.g.spec.Name, Service: spec.Name, Run: e.Run, Context: u.context(), Cgroup: u.dir, Tmp: h.guests[u.g.spec.Name]}
	_, timeout := machine.Timing(p)
	go func() {
		ctx, cancel := context.WithTimeout(h.ctx, timeout)
		defer cancel()
		ok, message := h.o.Probes.Probe(ctx, p, t)
		h.later(func() {
			h.step(u, machine.Event{Kind: machine.Probed, Run: e.Run, Probe: e.Kind, OK: ok, Message: message})
		})
	}()
}

func (h *Host) cleanUp(u *unit, e machine.CleanUp) {
	err := h.o.Processes.CleanUp(u.g.spec.Name, u.spec, e.Restarting)
	if err := errors.Join(err, h.leaveTmp(u)); err != nil {
		h.note(u.g, "cannot remove what the run left", err)
	}
	if u.spec.FDStorePreserve == "no" {
		h.dropFiles(u, "")
	}
	if u.spec.PIDFile != "" {
		_ = os.Remove(u.spec.PIDFile) // the service may have done so itself
	}
	h.o.Consoles.End(u.cgroup)
	if e.Restarting {
		h.o.Logs.Ended(u.g.spec.Name, u.spec.Name)
		return
	}
	if u.spec.FDStorePreserve != "yes" {
		h.dropFiles(u, "")
	}
	paths := []string{u.cgroup}
	if u.g.idleBut(u) {
		h.release(u.g)
		paths = append(paths, u.g.spec.Name)
	}
	for _, path := range paths {
		if pids, err := h.o.Cgroups.Pids(path); err == nil && len(pids) == 0 {
			if err := h.o.Cgroups.Remove(path); err != nil {
				h.note(u.g, "cannot remove the cgroup", err)
			}
		}
	}
	h.o.Logs.Detach(u.g.spec.Name, u.spec.Name)
	h.forgetName(u)
}

// release takes away what the group's mounts needed.
func (h *Host) release(g *group) {
	if err := h.o.Processes.Release(&g.spec); err != nil {
		h.note(g, "cannot take away what its mounts needed", err)
	}
}

// want notes who wants the group to run, or not.
func (h *Host) want(g *group, wanted bool, by string) {
	g.wanted, g.by = wanted, by
	h.dirty[g.spec.Name] = struct{}{}
	if g.unit {
		return
	}
	if err := h.writeWish(g); err != nil {
		h.note(g, wishNotSaved, err)
		h.unwished[g.spec.Name] = struct{}{}
	}
}
