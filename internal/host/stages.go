package host

import (
	"slices"
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// A group may be in stages, as a pod with init containers is: see Stage of
// service.Service. Which services wait is kept with the group; when they may go
// ahead is seen after each event (advance).

// held is a start that waits for the stages before.
type held struct {
	By string `json:"by,omitempty"`
	// Keep: it continues an earlier life (machine.Event, KeepCount).
	Keep bool `json:"keep,omitempty"`
	// All: all others start again, too, once nothing of them runs.
	All bool `json:"all,omitempty"`
}

// staged says whether the services have an order among themselves.
func (g *group) staged() bool {
	return slices.ContainsFunc(g.services, func(u *unit) bool { return u.spec.Stage != 0 })
}

func (g *group) lastStage() int {
	last := 0
	for _, u := range g.lasting() {
		last = max(last, u.spec.Stage)
	}
	return last
}

// rests says whether the service runs no more, and will not by itself.
func (u *unit) rests() bool { return u.in.State == service.Dead || u.in.State == service.Failed }

// over says whether the service has done all that it is for.
func (u *unit) over() bool {
	n := u.in.Newest
	return u.spec.Type == service.Oneshot && u.held == nil && u.in.State == service.Dead && !u.in.Stopping &&
		u.in.Result == service.Success && n != nil && n.Exit != nil
}

// passed says whether the next stage need not wait for the service any more.
func (u *unit) passed() bool {
	return u.over() || u.held == nil && u.spec.Type != service.Oneshot && u.in.IsStarted(u.spec)
}

// before lists the services of the stage before u's.
func (g *group) before(u *unit) []*unit {
	var list []*unit
	stage := -1
	for _, o := range g.lasting() {
		switch s := o.spec.Stage; {
		case s >= u.spec.Stage || s < stage:
		case s == stage:
			list = append(list, o)
		default:
			stage, list = s, []*unit{o}
		}
	}
	return list
}

// busyAfter says whether a service of a later stage runs, or is about to.
func (g *group) busyAfter(stage int) bool {
	return slices.ContainsFunc(g.services, func(u *unit) bool { return u.spec.Stage > stage && !u.rests() })
}

// launchStages starts what the stages allow now and holds back the rest. What
// runs already, and what has been done for it, stays as it is.
func (h *Host) launchStages(g *group) {
	j := g.job
	hold := func(u *unit) {
		u.held = &held{By: j.by, Keep: j.boot && g.spec.Source.Kind == service.FromPod && u.in.Run > 0}
	}
	if j.kind == restartJob && !g.idle() {
		for _, u := range g.lasting() {
			hold(u)
		}
		h.lowerStages(g, machine.Event{Kind: machine.StopAsked, By: j.by})
		h.save(g)
		return
	}
	last := g.lastStage()
	underway := slices.ContainsFunc(g.lasting(), func(u *unit) bool { return u.held != nil || u.spec.Stage == last && !u.rests() })
	var now []*unit
	for _, u := range g.lasting() {
		u.stop = nil
		switch {
		case underway && (u.held != nil || u.passed()):
		case !underway && len(g.before(u)) > 0:
			hold(u)
		default:
			now = append(now, u)
		}
	}
	for _, u := range now {
		keep := j.boot && g.spec.Source.Kind == service.FromPod && u.in.Run > 0
		h.step(u, machine.Event{Kind: machine.StartAsked, By: j.by, KeepCount: keep})
		if g.job != j {
			return
		}
	}
}

// lowerStages asks the services to stop, the last stage first. All of it lies
// within one grace period; without one nobody waits for anybody.
func (h *Host) lowerStages(g *group, ev machine.Event) {
	grace := g.spec.Grace
	if ev.Grace != nil {
		grace = max(*ev.Grace, 0)
	}
	g.stopBy = time.Time{}
	if grace > 0 {
		g.stopBy = time.Now().Add(grace)
	}
	var now []*unit
	for _, u := range g.services {
		u.stop = nil
		if g.busyAfter(u.spec.Stage) && !u.rests() && (ev.Grace == nil || grace > 0) {
			later := ev
			u.stop = &later
			continue
		}
		now = append(now, u)
	}
	j := g.job
	for _, u := range now {
		h.step(u, ev)
		if g.job != j {
			return
		}
	}
}

// advance lets those services of a group go ahead whose turn it is.
func (h *Host) advance(g *group) {
	if !g.staged() {
		return
	}
	h.advanceStops(g)
	h.restartAll(g)
	h.advanceStarts(g)
	last := g.lastStage()
	ended := !slices.ContainsFunc(g.lasting(), func(u *unit) bool { return u.held != nil || u.spec.Stage == last && !u.rests() })
	waits := slices.ContainsFunc(g.services, func(u *unit) bool { return u.stop == nil && !u.rests() && !u.in.Stopping })
	if ended && waits {
		h.lowerStages(g, machine.Event{Kind: machine.StopAsked, By: "what it was started for has ended"})
	}
}

func (h *Host) advanceStops(g *group) {
	for _, u := range slices.Clone(g.services) {
		if u.stop == nil || g.busyAfter(u.spec.Stage) {
			continue
		}
		ev := *u.stop
		u.stop = nil
		if !g.stopBy.IsZero() {
			// The kubelet's least (minimumGracePeriodInSeconds).
			left := max(time.Until(g.stopBy), 2*time.Second)
			ev.Grace = &left
		}
		h.step(u, ev)
	}
}

func (h *Host) advanceStarts(g *group) {
	for _, u := range slices.Clone(g.services) {
		if u.held == nil {
			continue
		}
		before := g.before(u)
		switch {
		case slices.ContainsFunc(before, func(o *unit) bool { return o.held == nil && o.rests() && !o.over() }):
			h.letGo(g)
			return
		case u.held.All && g.endsForAll():
		case len(before) == 0 && (u.stop != nil || !u.rests() || g.busyAfter(u.spec.Stage)):
			// A restart: all of it stops first.
		case !slices.ContainsFunc(before, func(o *unit) bool { return !o.passed() }):
			ev := machine.Event{Kind: machine.StartAsked, By: u.held.By, KeepCount: u.held.Keep}
			u.held = nil
			h.step(u, ev)
		}
	}
}

// letGo gives up the starts that wait: what they wait for has failed for good.
func (h *Host) letGo(g *group) {
	for _, u := range slices.Clone(g.services) {
		u.held = nil
		if u.in.CallsAll(u.spec) {
			h.step(u, machine.Event{Kind: machine.StopAsked, By: "what it waits for has failed"})
		}
	}
	h.save(g)
	h.dirty[g.spec.Name] = struct{}{}
}

// waitsFor says in words which services the start of u waits for.
func (g *group) waitsFor(u *unit) string {
	if u.held.All {
		return u.held.By
	}
	var names []string
	for _, o := range g.before(u) {
		names = append(names, o.spec.Name)
	}
	return "its start waits for " + sentence(names)
}
