package host

import (
	"fmt"
	"time"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
	"legion.dev/legion/internal/timer"
)

// Timers, paths and sockets: groups without services that start another group.
// Such a group is up like a target; what is said here comes on top.

// Clock tells the time of day and, apart from it, how long the machine is up.
type Clock interface {
	Real() time.Time
	// Uptime does not jump, and does not count time in suspend.
	Uptime() time.Duration
	// Jumped tells that the time of day was set.
	Jumped() <-chan struct{}
}

// plainClock is that of package time.
type plainClock struct{ began time.Time }

func (plainClock) Real() time.Time         { return time.Now().Round(0) }
func (c plainClock) Uptime() time.Duration { return time.Since(c.began) + time.Nanosecond }
func (plainClock) Jumped() <-chan struct{} { return nil }

// stamp is when a timer with Persistent= elapsed last, in the store's Stamps.
type stamp struct {
	Last time.Time `json:"last"`
}

func (h *Host) now() timer.Now {
	return timer.Now{Uptime: h.clock.Uptime(), Real: h.clock.Real(), Zone: time.Local}
}

// trigger is the status of a timer, path or socket; nil for other groups.
func (g *group) trigger() *service.TriggerStatus {
	if !g.spec.Trigger() {
		return nil
	}
	st := &service.TriggerStatus{State: service.TriggerDead}
	switch {
	case g.broken != "":
		st.State, st.Reason = service.TriggerFailed, g.broken
	case !g.up:
	case g.sockets != nil:
		k := g.sockets
		st.State, st.Since, st.Last, st.Accepted = k.state, k.since, k.last, k.accepted
	case g.path != nil:
		st.State, st.Since, st.Last = g.path.state, g.path.since, g.path.last
	case g.timer != nil:
		in := g.timer
		st.State, st.Since, st.Last, st.Next = in.State, in.Since, in.LastAt, in.NextAt
		if at := in.Since; in.HasNext && !at.IsZero() {
			// The uptime of Since is not kept; what is, is near Activated.
			real := in.ActivatedAt.Add(in.Next - in.Activated)
			if st.Next.IsZero() || real.Before(st.Next) {
				st.Next = real
			}
		}
	}
	return st
}

// raise brings a timer, path or socket up.
func (h *Host) raise(g *group, again bool) (failure string) {
	if again {
		h.lower(g)
	}
	g.broken = ""
	switch {
	case g.spec.Timer != nil && g.timer == nil:
		h.raiseTimer(g)
	case g.spec.Socket != nil && g.sockets == nil:
		failure = h.raiseSocket(g)
	case g.spec.Path != nil && g.path == nil:
		failure = h.raisePath(g)
	}
	if failure != "" {
		g.broken = failure
	}
	return failure
}

// lower takes it down again.
func (h *Host) lower(g *group) {
	h.lowerSocket(g)
	h.lowerPath(g)
	g.timer, g.broken = nil, ""
	if g.spec.Trigger() {
		h.save(g)
	}
}

// resumeTrigger goes on where an earlier legiond of the same boot was.
func (h *Host) resumeTrigger(g *group, r record) {
	if r.Timer == nil || g.spec.Timer == nil {
		return
	}
	g.timer = r.Timer
	h.startup = min(h.startup, r.Timer.Startup)
	if r.Timer.State == service.TriggerRunning {
		return // noticed sees to it once its unit is at rest
	}
	h.planTimer(g)
}

// resumeWaiting opens and watches again what an earlier legiond of the same boot
// did; it comes once every group is known.
func (h *Host) resumeWaiting(g *group) {
	switch {
	case g.spec.Socket != nil:
		h.resumeSocket(g)
		for name, o := range h.groups {
			if o.demanded && g.spec.Socket.Accept && instanceOf(name, g.spec.Socket.Unit) {
				o.listener, o.gone = g.spec.Name, true
			}
		}
	case g.spec.Path != nil:
		if failure := h.raisePath(g); failure != "" {
			h.breaks(g, failure)
		}
	}
}

func (h *Host) raiseTimer(g *group) {
	name := g.spec.Name
	now := h.now()
	last := h.stamps[name].Last
	if !g.spec.Timer.Persistent {
		last = time.Time{}
	} else if last.IsZero() {
		// It never ran: what it would have done before is not missed.
		h.stampNow(g, now.Real)
		last = now.Real
	}
	in := timer.Start(now, h.startup, last)
	g.timer = &in
	h.planTimer(g)
}

func (h *Host) stampNow(g *group, at time.Time) {
	s := stamp{at}
	h.stamps[g.spec.Name] = s
	if err := h.o.Store.Save(store.Stamps, g.spec.Name, s); err != nil {
		h.note(g, "cannot write down when it elapsed", err)
	}
}

// planTimer works out when the timer elapses next.
func (h *Host) planTimer(g *group) {
	in := *g.timer
	if u := h.find(g.spec.Timer.Unit); u != nil {
		in.UnitStarted, in.UnitEnded = max(in.UnitStarted, u.began), max(in.UnitEnded, u.ended)
	}
	in = timer.Plan(g.spec.Timer, in, h.now(), h.o.Seed+"\x00"+g.spec.Name)
	g.timer, h.stale = &in, true
	h.dirty[g.spec.Name] = struct{}{}
	if in.State == service.TriggerElapsed && g.spec.Timer.EndsAfterElapse && in.Last > 0 {
		g.up, g.timer = false, nil
	}
	h.save(g)
}

// elapse is when the group's timer is to be looked at; zero for never.
func (h *Host) elapse(g *group) time.Time {
	if g.sockets != nil && !h.closing() {
		return g.sockets.putOff
	}
	if g.timer == nil || h.closing() {
		return time.Time{}
	}
	d, ok := g.timer.Wait(h.now())
	if !ok {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// elapseDue starts the units of the timers whose time has come.
func (h *Host) elapseDue() {
	if h.closing() {
		return
	}
	for _, g := range h.inOrder() {
		if g.timer != nil && g.timer.Due(h.now()) {
			h.elapsed(g, "has elapsed")
		}
		if k := g.sockets; k != nil && !k.putOff.IsZero() && !time.Now().Before(k.putOff) {
			k.putOff = time.Time{}
			h.listen(g)
		}
	}
}

// elapsed starts the timer's unit.
func (h *Host) elapsed(g *group, what string) {
	now := h.now()
	in := g.timer.Elapse(now)
	g.timer, h.stale = &in, true
	h.dirty[g.spec.Name] = struct{}{}
	h.save(g)
	if g.spec.Timer.Persistent {
		h.stampNow(g, now.Real)
	}
	h.trip(g, g.spec.Timer.Unit, fmt.Sprintf("%s %s", g.spec.Name, what))
}

// trip starts the group that a timer, path or socket is for.
func (h *Host) trip(g *group, name, by string) {
	if g.goesDown() {
		return
	}
	unit := h.demand(name)
	if unit == nil {
		h.breaks(g, fmt.Sprintf("there is no unit %s to start", name))
		return
	}
	h.request(startJob, unit.spec.Name, job{by: by}, func(o outcome) {
		if o.failure != "" {
			h.o.Log.Error("a unit was to be started and did not", "group", unit.spec.Name, "by", by, "reason", o.failure)
		}
		h.dirty[unit.spec.Name] = struct{}{} // noticed looks at it
	})
}

// goesDown says whether a stop of the group waits or is under way.
func (g *group) goesDown() bool { return g.job != nil && g.job.kind == stopJob }

// seen keeps when a group last left rest and came back to it.
func (h *Host) seen(g *group, t machine.Transition) {
	rest := func(s service.State) bool { return s == service.Dead || s == service.Failed }
	switch {
	case rest(t.From) && !rest(t.To):
		g.began = h.clock.Uptime()
	case !rest(t.From) && rest(t.To):
		g.ended = h.clock.Uptime()
	}
}

// noticed tells the timers, paths and sockets of a group that it has changed.
func (h *Host) noticed(g *group) {
	if h.closing() {
		return
	}
	for _, name := range h.relations().starters[g.spec.Name] {
		t := h.groups[name]
		if t == nil || !t.up || t.broken != "" {
			continue
		}
		switch {
		case t.timer != nil:
			h.timerNoticed(t, g)
		case t.sockets != nil:
			h.socketNoticed(t, g)
		case t.path != nil:
			h.pathNoticed(t, g)
		}
	}
}

func (h *Host) timerNoticed(t, unit *group) {
	spec, in := t.spec.Timer, t.timer
	follows := len(spec.OnUnitActive)+len(spec.OnUnitInactive) > 0 && (unit.began > in.UnitStarted || unit.ended > in.UnitEnded)
	done := in.State == service.TriggerRunning && unit.idle() && unit.job == nil
	if done || in.State != service.TriggerRunning && follows {
		h.planTimer(t)
	}
}

// jumped: the time of day was set, so what follows it is worked out anew.
func (h *Host) jumped() {
	h.stale = true
	for _, g := range h.inOrder() {
		switch {
		case g.timer == nil:
		case g.spec.Timer.OnClockChange && !h.closing():
			h.elapsed(g, "has seen the clock being set")
		case g.timer.State != service.TriggerRunning:
			h.planTimer(g)
		}
	}
}

// explainTrigger says what a timer, path or socket waits for.
func (h *Host) explainTrigger(g *group, v *hostapi.Explanation) {
	unit := g.spec.Triggers()
	st := g.trigger()
	switch st.State {
	case service.TriggerFailed:
		v.Why = append(v.Why, fmt.Sprintf("It has failed: %s.", st.Reason))
		v.Next = append(v.Next, "Nothing, until it is started again by request.")
	case service.TriggerDead:
		v.Why = append(v.Why, fmt.Sprintf("It is not up, so it does not start %s.", unit))
	case service.TriggerRunning:
		v.Why = append(v.Why, fmt.Sprintf("It has started %s, which is not at rest yet.", unit))
		v.Next = append(v.Next, fmt.Sprintf("When %s has ended, it waits again.", unit))
	case service.TriggerElapsed:
		v.Why = append(v.Why, "It has elapsed, and has no next time.")
	default:
		v.Why = append(v.Why, fmt.Sprintf("It is up and waits to start %s.", unit))
	}
	if !st.Last.IsZero() {
		v.Why = append(v.Why, fmt.Sprintf("It last started %s at %s.", unit, calendar.FormatTime(st.Last.Local())))
	}
	if g.timer == nil {
		return
	}
	if d, ok := g.timer.Wait(h.now()); ok {
		v.Next = append(v.Next, fmt.Sprintf("In %s it starts %s.", calendar.FormatDuration(d), unit))
	}
}
