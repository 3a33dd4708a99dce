package host

import (
	"fmt"
	"slices"
	"time"

	"legion.dev/legion/internal/service"
)

// phase is what others make of a group's state.
type phase string

const (
	phaseUp       phase = "up"
	phaseFailed   phase = "failed"
	phaseDown     phase = "down"
	phaseChanging phase = "changing"
)

func (g *group) currentPhase() phase {
	switch {
	case g.active():
		return phaseUp
	case !g.idle():
		return phaseChanging
	case slices.ContainsFunc(g.lasting(), func(u *unit) bool { return u.in.State == service.Failed }):
		return phaseFailed
	}
	return phaseDown
}

// follow does what the change of a group's phase brings for others
// (systemd.unit(5): Upholds=, OnFailure=, OnSuccess=, StopWhenUnneeded=).
func (h *Host) follow(g *group) {
	before, now := g.phase, g.currentPhase()
	g.phase = now
	if before == now || h.closing() {
		return
	}
	name, deps := g.spec.Name, g.spec.Deps
	h.essential(g, before, now)
	switch now {
	case phaseUp:
		g.waits = nil
		h.recovered(g)
		for _, n := range deps.Upholds {
			h.uphold(g, h.find(n))
		}
		h.unneeded(g)
	case phaseFailed:
		if before != "" {
			h.startAll(deps.OnFailure, g.spec.OnFailureMode, name+" has failed (OnFailure=)")
			h.act(g, "FailureAction", g.spec.Actions.Failure, g.spec.Actions.FailureStatus, g.spec.Actions.RebootArgument)
		}
	case phaseDown:
		// What is reset has not ended just now.
		if before != "" && before != phaseFailed && g.skipped == "" {
			h.startAll(deps.OnSuccess, g.spec.OnSuccessMode, name+" has ended well (OnSuccess=)")
			h.act(g, "SuccessAction", g.spec.Actions.Success, g.spec.Actions.SuccessStatus, g.spec.Actions.RebootArgument)
		}
	}
	if now == phaseFailed || now == phaseDown {
		for _, n := range h.relations().Users(name) {
			if o := h.groups[n]; o != nil && h.names(o.spec.Deps.Upholds, g) && o.active() {
				h.uphold(o, g)
			}
		}
		for _, n := range h.relations().uses[name] {
			h.unneeded(h.groups[n])
		}
	}
}

// essential ends everything once the group without which there is nothing to do
// has ended for good.
func (h *Host) essential(g *group, before, now phase) {
	if g.spec.Name != h.essentialName() || before == "" || now != phaseFailed && now != phaseDown || g.job != nil {
		return
	}
	h.exitReason = fmt.Sprintf("%s, which is essential, has ended", g.spec.Name)
	if now == phaseFailed {
		h.exitCode = 1
	}
	for _, u := range g.services {
		h.exitReason += ": " + u.in.Reason
		if n := u.in.Newest; n != nil && n.Exit != nil {
			switch {
			case n.Exit.Signal != 0:
				h.exitCode = 128 + n.Exit.Signal
			case n.Exit.Code != 0:
				h.exitCode = n.Exit.Code
			}
		}
	}
	h.o.Log.Info("stopping everything", "reason", h.exitReason, "status", h.exitCode)
	h.end(h.exitReason)
}

// essentialName is the group's own name where the option has an alias.
func (h *Host) essentialName() string {
	if h.o.Essential == "" {
		return ""
	}
	if g := h.find(h.o.Essential); g != nil {
		return g.spec.Name
	}
	return h.o.Essential
}

// ExitCode is the status that legiond ends with because of the essential group,
// and why; the reason is empty where it did not end by itself. Call it after
// Run.
func (h *Host) ExitCode() (code int, reason string) { return h.exitCode, h.exitReason }

func (h *Host) startAll(names []string, mode service.JobMode, by string) {
	for _, n := range names {
		g := h.demand(n)
		if g == nil {
			h.o.Log.Error("cannot start what was to follow", "unit", n, "because", by, "reason", "there is no such unit")
			continue
		}
		if g.job == nil && (!g.active() || mode == service.JobIsolate) {
			h.request(startJob, g.spec.Name, job{by: by, mode: mode}, func(o outcome) {
				if o.failure != "" {
					h.o.Log.Error("did not start", "group", n, "because", by, "reason", o.failure)
				}
			})
		}
	}
}

// uphold starts a group that is down because another one wants it to be up.
func (h *Host) uphold(by, g *group) {
	if g == nil || g.job != nil || !g.idle() || g.deleting || g.gone {
		return
	}
	for _, u := range g.services {
		if u.in.Result == service.StartLimitHit {
			return
		}
	}
	h.request(startJob, g.spec.Name, job{by: "upheld by " + by.spec.Name}, func(outcome) {})
}

// recovered starts what failed for want of the group.
func (h *Host) recovered(g *group) {
	waiting := map[string]*group{}
	for _, n := range h.relations().Dependents(g.spec.Name) {
		if o := h.groups[n]; o != nil && slices.Contains(o.waits, g.spec.Name) {
			waiting[n] = o
		}
	}
	for _, o := range byName(waiting) {
		o.waits = slices.DeleteFunc(o.waits, func(n string) bool { return n == g.spec.Name })
		if len(o.waits) > 0 || o.spec.NoRecover || !o.idle() || o.job != nil || o.deleting || o.gone {
			continue
		}
		h.request(startJob, o.spec.Name, job{by: fmt.Sprintf("%s, which it requires, is up again", g.spec.Name)}, func(outcome) {})
	}
}

// awaits notes that a group is down because another one is.
func (g *group) awaits(o *group) {
	if !slices.Contains(g.waits, o.spec.Name) {
		g.waits = append(g.waits, o.spec.Name)
	}
}

// unneeded stops a group with StopWhenUnneeded= that nobody wants any more.
func (h *Host) unneeded(g *group) {
	if g == nil || !g.spec.StopWhenUnneeded || g.job != nil || g.idle() {
		return
	}
	for _, n := range h.relations().Users(g.spec.Name) {
		if o := h.groups[n]; o != nil && (!o.idle() || o.job != nil && o.job.kind != stopJob) {
			return
		}
	}
	h.request(stopJob, g.spec.Name, job{by: "no active unit needs it (StopWhenUnneeded=)"}, func(outcome) {})
}

// demand finds a group, and reads its unit file where nothing has named it yet:
// an instance of a template.
func (h *Host) demand(name string) *group {
	if g := h.find(name); g != nil {
		return g
	}
	spec, err := h.o.Units.Find(name)
	if err != nil {
		return nil
	}
	return h.take(spec)
}

// take adds a group from a unit file that was read by itself, and the units
// that it needs.
func (h *Host) take(spec service.Group) *group {
	if g := h.find(spec.Name); g != nil {
		return g // it was an alias
	}
	g := newGroup(spec, time.Now())
	g.unit, g.demanded = true, true
	h.groups[spec.Name] = g
	h.graph = nil
	h.dirty[spec.Name] = struct{}{}
	d := spec.Deps
	for _, n := range slices.Concat(d.Requires, d.Wants, d.BindsTo, d.Upholds) {
		if h.find(n) == nil {
			h.demand(n)
		}
	}
	return g
}

// late ends a job that takes longer than it may (JobTimeoutSec=).
func (h *Host) late(now time.Time) {
	for _, g := range byName(h.pending) {
		if at := g.jobDeadline(); !at.IsZero() && !now.Before(at) {
			if g.unready() {
				h.finish(g, "it runs and is not ready: "+g.services[0].in.Probe)
				continue
			}
			h.finish(g, fmt.Sprintf("the %s was not done within %s (JobTimeoutSec=); what it began goes on", g.job.kind, now.Sub(g.job.asked).Round(time.Millisecond)))
			h.act(g, "JobTimeoutAction", g.spec.Actions.JobTimeout, new(int), g.spec.Actions.JobTimeoutArgument)
		}
	}
}

// jobDeadline is when the group's job must be done; zero is never.
func (g *group) jobDeadline() time.Time {
	j := g.job
	var at time.Time
	if j == nil {
		return at
	}
	if d := g.spec.JobTimeout; d > 0 {
		at = j.asked.Add(d)
	}
	if d := g.spec.JobRunningTimeout; d > 0 && j.running {
		if by := j.launched.Add(d); at.IsZero() || by.Before(at) {
			at = by
		}
	}
	if g.unready() {
		if d := g.services[0].spec.TimeoutStart; d > 0 {
			if by := j.launched.Add(d); at.IsZero() || by.Before(at) {
				at = by
			}
		}
	}
	return at
}

// unready says whether a start waits for nothing but the readiness probe.
func (g *group) unready() bool {
	if !g.unit || g.job == nil || !g.job.running || g.job.kind != startJob && g.job.kind != restartJob || len(g.services) != 1 {
		return false
	}
	u := g.services[0]
	return u.spec.Readiness != nil && u.in.State == service.Running && !u.in.IsReady(u.spec)
}
