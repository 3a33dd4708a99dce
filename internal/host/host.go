// Package host is legiond's loop: it owns what is known of every group, takes
// events in one at a time, hands them to the machines, and carries out what
// these ask for. Whatever takes long runs elsewhere and comes back as an event.
package host

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// Options is all that a Host is made of.
type Options struct {
	Processes Processes
	Cgroups   Cgroups
	Logs      Logs
	Notes     Notes
	Probes    Probes
	Units     Units
	Store     Store
	// Sockets and Paths may be nil: then units of these types fail.
	Sockets Sockets
	Paths   Paths
	// Keeper may be nil: then nothing that is open here outlives legiond.
	Keeper Keeper
	// Consoles may be nil where no service has one.
	Consoles Consoles
	// Names may be nil: then there is no system bus.
	Names Names
	// Syslog may be nil: then somebody else takes what comes on /dev/log.
	Syslog Syslog
	// Saved is what the store held when it was opened.
	Saved Saved
	// Events, where not nil, is given each transition to keep.
	Events func(hostapi.Transition) error
	Log    *slog.Logger

	Version  string
	BootID   string
	StateDir string
	// Clock is the machine's; nil is that of package time, which sees no jump.
	Clock Clock
	// Seed names the host, for what timers put off at random.
	Seed string
	// BootAll starts every unit that says where it would be installed, beside
	// the groups that are marked for boot.
	BootAll bool
	// Essential is the group whose end ends legiond, with its status.
	Essential string
	// Place is what legiond is to the machine.
	Place Place
	// Point, where not nil, is told of each moment between two effects; a test
	// ends the program there.
	Point func(what string)
	// Successor, where not nil, says whether the program that would take
	// legiond's place can run; Handover is what the one before has left.
	Successor func(context.Context) error
	Handover  *Handover
	// Problems are those found before the loop began.
	Problems []service.Warning
}

// Host supervises groups. Make one with New, then call Run.
type Host struct {
	o       Options
	inbox   chan func()
	started time.Time

	groups map[string]*group
	// jobs is how many were made.
	jobs uint64
	// pending are the groups that have a job.
	pending map[string]*group
	// waiting are those of pending that wait for the jobs of others; unsettled
	// says that one of them may go ahead.
	waiting   map[string]*group
	unsettled bool
	// alarmAt is when the alarm rings next; stale says that it may be too late.
	alarmAt  time.Time
	stale    bool
	starts   starts
	problems []service.Warning // of the unit files
	graph    *relations        // nil: to be worked out again
	// owners finds the process that an exit is about.
	owners map[int]owner
	early  early
	// spawning counts starts whose news is under way; earlyNotes are messages
	// that came meanwhile from processes that are not known yet.
	spawning   int
	earlyNotes []Message
	// unsaved are groups of which the disk does not know what is known, unwished
	// those of which it does not know what is wanted.
	unsaved, unwished map[string]struct{}
	// guests are the units that see the /tmp of another, by name.
	guests map[string]string
	// dirty are groups to tell watchers of, once the event is done.
	dirty    map[string]struct{}
	watchers map[*watcher]struct{}
	clock    Clock
	// startup is when legiond started in this boot, by uptime; stamps are when
	// timers with Persistent= elapsed last.
	startup time.Duration
	stamps  map[string]stamp
	// ending is set while everything is being stopped, and closed after.
	ending chan struct{}
	ended  bool
	// reexec: the loop is to be left for the next program.
	reexec   bool
	handover Handover
	// exitCode is how the essential group has ended, exitReason why; empty if
	// it has not by itself.
	exitCode   int
	exitReason string
	// after is what is to be done to the machine then.
	after Ending
	ready chan struct{}
	ctx   context.Context
}

type owner struct {
	u     *unit
	proc  uint64
	run   uint64
	ticks uint64
}

// New makes a host; nothing happens before Run.
func New(o Options) *Host {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = plainClock{time.Now()}
	}
	if o.Sockets == nil {
		o.Sockets = noSockets{}
	}
	if o.Paths == nil {
		o.Paths = noPaths{}
	}
	if o.Syslog == nil {
		o.Syslog = noSyslog{}
	}
	if o.Keeper == nil {
		o.Keeper = noKeeper{}
	}
	if o.Consoles == nil {
		o.Consoles = noConsoles{}
	}
	if o.Names == nil {
		o.Names = noNames{}
	}
	return &Host{
		clock: o.Clock, stamps: map[string]stamp{},
		o: o, inbox: make(chan func(), 64), groups: map[string]*group{}, pending: map[string]*group{}, waiting: map[string]*group{}, owners: map[int]owner{}, unsaved: map[string]struct{}{}, unwished: map[string]struct{}{},
		dirty: map[string]struct{}{}, guests: map[string]string{}, watchers: map[*watcher]struct{}{}, ready: make(chan struct{}), problems: o.Problems,
		stale: true,
	}
}

// Ready is closed once the groups of boot are on their way.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// Run takes up what an earlier legiond left, starts what boot wants, and
// serves until ctx ends or everything has been stopped (Poweroff). Ending ctx
// leaves every process running.
func (h *Host) Run(ctx context.Context) error {
	h.ctx, h.started = ctx, time.Now()
	h.load()
	h.o.Processes.Begin()
	if h.o.Handover != nil {
		for _, m := range h.o.Handover.Notes {
			h.notified(m)
		}
		h.o.Keeper.Heard()
	}
	h.flush()
	close(h.ready)

	alarm := time.NewTimer(time.Hour)
	defer alarm.Stop()
	lazy := time.NewTimer(time.Hour)
	lazy.Stop()
	defer lazy.Stop()
	syncing := false
	for !h.ended {
		h.setAlarm(alarm)
		select {
		case f := <-h.inbox:
			f()
		case x := <-h.o.Processes.Exits():
			h.exited(x)
		case path := <-h.o.Cgroups.Empty():
			h.emptied(path)
		case m := <-h.o.Notes.Messages():
			h.notified(m)
		case <-alarm.C:
			h.stale = true
			h.alarmed()
		case <-h.clock.Jumped():
			h.jumped()
		case name := <-h.o.Sockets.Ready():
			h.incoming(name)
		case c := <-h.o.Paths.Changes():
			h.pathChanged(c)
		case c := <-h.o.Names.Changes():
			h.named(c)
		case a := <-h.o.Names.Activations():
			h.activated(a)
		case l := <-h.o.Syslog.Lines():
			h.said(l)
		case <-lazy.C:
			syncing = false
			h.saveAgain()
			go h.sync()
		case <-ctx.Done():
			h.closeWatchers()
			return nil
		}
		if !syncing {
			syncing = true
			lazy.Reset(2 * time.Second)
		}
		h.dispatch()
		h.flush()
		if h.reexec && h.spawning == 0 && !h.ended {
			h.leave()
			h.closeWatchers()
			return ErrReexec
		}
	}
	h.closeWatchers()
	return nil
}

// sync puts on the disk what was written without waiting for it.
func (h *Host) sync() {
	if err := h.o.Store.Sync(); err != nil {
		h.o.Log.Error("cannot put the state on the disk", "error", err)
	}
}

// do runs f in the loop and waits until it has run. After an error it has not,
// and never will: what it writes to is the caller's again.
func (h *Host) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	var claimed atomic.Bool // by the loop, or by who does not wait any longer
	err := h.post(ctx, func() {
		if claimed.CompareAndSwap(false, true) {
			f()
			close(done)
		}
	})
	if err != nil {
		return err
	}
	var failed error
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		failed = ctx.Err()
	case <-h.stopped():
		failed = &hostapi.Error{Code: "failed", Message: "legiond is ending"}
	}
	if claimed.CompareAndSwap(false, true) {
		return failed
	}
	<-done
	return nil
}

func (h *Host) post(ctx context.Context, f func()) error {
	select {
	case <-h.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case h.inbox <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-h.stopped():
		return &hostapi.Error{Code: "failed", Message: "legiond is ending"}
	}
}

// stopped is closed when the loop was told to leave; only valid after ready.
func (h *Host) stopped() <-chan struct{} { return h.ctx.Done() }

// later posts from a goroutine that the loop has started.
func (h *Host) later(f func()) {
	select {
	case h.inbox <- f:
	case <-h.ctx.Done():
	}
}

func (h *Host) setAlarm(t *time.Timer) {
	if !h.stale {
		return
	}
	h.stale, h.alarmAt = false, time.Time{}
	var next time.Time
	for _, g := range h.groups {
		if at := h.elapse(g); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
		for _, u := range g.services {
			if at := u.in.NextAlarm(); !at.IsZero() && (next.IsZero() || at.Before(next)) {
				next = at
			}
		}
	}
	for _, g := range h.pending {
		if at := g.jobDeadline(); !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	if next.IsZero() {
		t.Reset(time.Hour)
		return
	}
	h.alarmAt = next
	t.Reset(max(0, time.Until(next)))
}

func (h *Host) alarmed() {
	now := time.Now()
	h.late(now)
	h.elapseDue()
	for _, g := range h.groups {
		for _, u := range g.services {
			if at := u.in.NextAlarm(); !at.IsZero() && !now.Before(at) {
				h.step(u, machine.Event{Kind: machine.Alarmed})
			}
		}
	}
}

// step gives an event to a service's machine, keeps the outcome, and does what
// it asks for.
func (h *Host) step(u *unit, ev machine.Event) {
	ev.Left = h.left(u, ev.Kind)
	now := time.Now()
	before := u.in
	next, effects := machine.Step(u.config(), before, ev, now)
	u.in = next
	if at := next.NextAlarm(); !at.IsZero() && (h.alarmAt.IsZero() || at.Before(h.alarmAt)) {
		h.stale = true
	}
	if worthSaving(&before, &next) {
		h.save(u.g)
	}
	if before.Run != next.Run {
		u.g.skipped = ""
	}
	if len(effects) > 0 || !reflect.DeepEqual(before.Status(u.spec), next.Status(u.spec)) {
		h.dirty[u.g.spec.Name] = struct{}{}
	}
	for _, e := range effects {
		h.point("before an effect")
		h.carryOut(u, e, now)
		h.point("after an effect")
	}
}

func (h *Host) point(what string) {
	if h.o.Point != nil {
		h.o.Point(what)
	}
}

// worthSaving leaves out what only concerns the probes and the watchdog: a
// legiond that takes over asks again.
func worthSaving(a, b *machine.Instance) bool {
	pid := func(p *machine.Proc) int {
		if p == nil {
			return -1
		}
		return p.PID
	}
	return a.State != b.State || a.Run != b.Run || a.Procs != b.Procs || pid(a.Main) != pid(b.Main) || pid(a.Control) != pid(b.Control) ||
		a.Stopping != b.Stopping || a.Again != b.Again || a.Restarts != b.Restarts || a.Readiness.Passed != b.Readiness.Passed ||
		a.Startup.Passed != b.Startup.Passed || !a.Deadline.Equal(b.Deadline) || !a.StopBy.Equal(b.StopBy)
}

// left says whether the service's cgroup has processes, where that matters.
func (h *Host) left(u *unit, k machine.Kind) bool {
	switch k {
	case machine.Spawned, machine.Notified, machine.Probed, machine.MainFound, machine.ResetAsked:
		return u.in.MainUnknown
	}
	return h.o.Cgroups.Populated(u.cgroup)
}

func (h *Host) exited(x Exited) {
	h.heard()
	h.o.Cgroups.Exited(x.PID)
	o, ok := h.owners[x.PID]
	if !ok || o.ticks != x.StartTicks {
		// Its start is not told yet, or it is an orphan of which nobody asked.
		h.early.put(x)
		return
	}
	delete(h.owners, x.PID)
	delete(o.u.procs, o.proc)
	if h.movedOn(o) {
		return
	}
	// A shell whose command was killed ends with 137.
	if (x.Exit.Signal == 9 || x.Exit.Code == 137) && o.u.spec.Resources != nil {
		before := o.u.ooms
		o.u.ooms = h.o.Cgroups.OOMKills(o.u.cgroup)
		x.Exit.OOM = o.u.ooms > before
	}
	main := o.u.in.Main != nil && o.u.in.Main.ID == o.proc
	if main {
		x.Exit.Message = lastWords(o.u.spec.TerminationMessage)
	}
	ev := machine.Event{Kind: machine.MainExited, Run: o.run, Proc: o.proc, Exit: x.Exit}
	if c := o.u.spec.Exec.Container; c != nil && !main && x.Exit.Code != 0 && o.u.in.State == service.Start {
		ev.Message = runtimeWords(c)
	}
	h.step(o.u, ev)
	if main {
		h.logWords(o.u, o.run, x.Exit)
	}
}

// heard takes the messages that are there already: what a process said before
// it ended comes before its end.
func (h *Host) heard() {
	for {
		select {
		case m := <-h.o.Notes.Messages():
			h.notified(m)
		default:
			return
		}
	}
}

func (h *Host) emptied(path string) {
	name, _, _ := strings.Cut(path, "/")
	g := h.groups[name]
	if g == nil {
		return
	}
	for _, u := range g.services {
		if u.cgroup == path {
			if !h.o.Cgroups.Populated(path) {
				h.step(u, machine.Event{Kind: machine.Emptied})
			}
			return
		}
	}
}

// note keeps what could not be done for a group where people look for it.
func (h *Host) note(g *group, what string, err error) {
	h.o.Log.Error(what, "group", g.spec.Name, "error", err)
	h.works(g, what)
	if len(g.failures) < 10 {
		g.failures = append(g.failures, service.Warning{Text: fmt.Sprintf("%s: %v", what, err)})
	}
	h.dirty[g.spec.Name] = struct{}{}
}

// works takes a note back, because the same has been done now.
func (h *Host) works(g *group, what string) {
	g.failures = slices.DeleteFunc(g.failures, func(w service.Warning) bool { return strings.HasPrefix(w.Text, what+": ") })
}
