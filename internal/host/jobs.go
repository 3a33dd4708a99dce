package host

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// jobKind is what a job is to bring about.
type jobKind string

const (
	startJob   jobKind = "start"
	stopJob    jobKind = "stop"
	restartJob jobKind = "restart"
	reloadJob  jobKind = "reload"
)

// job brings one group where somebody wants it. A group has one at most; it
// waits for those of other groups that are ordered before it.
type job struct {
	id    uint64
	kind  jobKind
	by    string
	grace *time.Duration
	// mode is how it goes together with other jobs.
	mode service.JobMode
	// boot: the start goes on where an earlier life of the machine ended.
	boot bool
	// spread: it is asked for because another group is down.
	spread  bool
	running bool
	// asked and launched are when it was made, and handed to the machines.
	asked, launched time.Time
	// runs are the run numbers from before, by service.
	runs map[string]uint64
	done map[string]bool
	// failure is the first reason for which it cannot succeed.
	failure string
	waiters []func(outcome)
}

// outcome is how a job went; failure is empty where it succeeded.
type outcome struct {
	changed bool
	message string
	failure string
}

// request makes the jobs of a transaction and calls done once the one for the
// named group is finished.
func (h *Host) request(kind jobKind, name string, template job, done func(outcome)) {
	plan, err := h.transaction(kind, name, template.mode)
	if err != nil {
		done(outcome{failure: err.Error()})
		return
	}
	for _, p := range plan {
		j := template
		j.kind = jobKind(p.Kind)
		var tell func(outcome)
		if p.Group == name {
			tell = done
		} else {
			j.by, j.grace = p.Reason, nil
		}
		h.install(h.groups[p.Group], &j, tell)
	}
}

// install gives the group a job, in place of one that wants something else.
func (h *Host) install(g *group, j *job, tell func(outcome)) {
	wanted := j.kind != stopJob
	if j.kind != reloadJob && (g.wanted != wanted || g.by != j.by) && !h.closing() {
		h.want(g, wanted, j.by)
	}
	if old := g.job; old != nil {
		if old.kind == j.kind && j.grace == nil {
			if tell != nil {
				old.waiters = append(old.waiters, tell)
			}
			return
		}
		h.finish(g, fmt.Sprintf("a %s was asked for meanwhile (%s)", j.kind, j.by))
	}
	if tell != nil {
		j.waiters = append(j.waiters, tell)
	}
	j.asked = time.Now()
	if j.kind == stopJob && !j.spread {
		g.waits = nil
	}
	j.done, j.runs = map[string]bool{}, map[string]uint64{}
	h.jobs++
	j.id, g.job = h.jobs, j
	h.pending[g.spec.Name], h.waiting[g.spec.Name] = g, g
	h.unsettled, h.stale = true, true
	h.dirty[g.spec.Name] = struct{}{}
}

func (h *Host) closing() bool { return h.ending != nil }

// dispatch runs every job that waits for nothing any more. Where all wait for
// each other, the order is a circle, and the first by name goes ahead.
func (h *Host) dispatch() {
	if h.graph == nil { // the order is another one now
		h.unsettled = true
	}
	for h.unsettled {
		h.unsettled = false
		progress := false
		var waiting []*group
		for _, g := range byName(h.waiting) {
			if g.job == nil || g.job.running {
				delete(h.waiting, g.spec.Name)
				continue
			}
			if len(h.blockers(g, 1)) == 0 {
				delete(h.waiting, g.spec.Name)
				h.launch(g)
				progress = true
				continue
			}
			waiting = append(waiting, g)
		}
		if progress {
			h.unsettled = true
			continue
		}
		if len(waiting) == 0 || len(h.pending) > len(waiting) {
			return // what runs goes on first
		}
		var names []string
		for _, g := range waiting {
			names = append(names, g.spec.Name)
		}
		h.note(waiting[0], "the order of start is a circle, so this one went ahead", fmt.Errorf("the orderings of %s", strings.Join(names, ", ")))
		delete(h.waiting, waiting[0].spec.Name)
		h.launch(waiting[0])
		h.unsettled = true
	}
}

func (h *Host) inOrder() []*group { return byName(h.groups) }

func byName(groups map[string]*group) []*group {
	all := make([]*group, 0, len(groups))
	for _, g := range groups {
		all = append(all, g)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].spec.Name < all[j].spec.Name })
	return all
}

// blockers are the groups whose jobs come before this one's (systemd.unit(5),
// Before= and After=): the first of them up to a number, 0 for all.
func (h *Host) blockers(g *group, most int) []string {
	if g.job.kind == reloadJob || g.job.mode == service.JobIgnoreDependencies {
		return nil
	}
	var names []string
	is := func(name string, stop, start bool) {
		o := h.pending[name]
		if o == nil || o == g || o.job.kind == reloadJob || most > 0 && len(names) == most || slices.Contains(names, name) {
			return
		}
		if o.job.kind == stopJob && stop || o.job.kind != stopJob && start {
			names = append(names, name)
		}
	}
	r := h.relations()
	later := r.after[g.spec.Name]
	if g.job.kind == stopJob {
		for _, n := range later {
			is(n, true, false)
		}
		slices.Sort(names)
		return names
	}
	for _, n := range r.before[g.spec.Name] {
		is(n, true, true)
	}
	for _, n := range later {
		is(n, true, false)
	}
	for _, n := range r.Conflicts(g.spec.Name) {
		is(n, true, false)
	}
	slices.Sort(names)
	return names
}

// launch hands the job to the machines.
func (h *Host) launch(g *group) {
	j := g.job
	j.running, j.launched = true, time.Now()
	for _, u := range g.services {
		j.runs[u.spec.Name] = u.in.Run
	}
	if j.failure == "" {
		j.failure = h.unmet(g)
	}
	if j.failure != "" {
		h.finish(g, j.failure)
		return
	}
	switch j.kind {
	case startJob, restartJob:
		h.launchStart(g)
	case stopJob:
		if len(g.services) == 0 {
			g.up = false
			h.lower(g)
		}
		ev := machine.Event{Kind: machine.StopAsked, By: j.by, Grace: j.grace}
		if g.staged() {
			for _, u := range g.services {
				u.held = nil
			}
			h.lowerStages(g, ev)
		} else {
			h.stepAll(g, ev)
		}
	case reloadJob:
		if g.canReload() { // else it only passes the reload on
			h.stepAll(g, machine.Event{Kind: machine.ReloadAsked, By: j.by})
		}
	}
	h.judge(g)
}

// unmet says which requirement of a start does not hold.
func (h *Host) unmet(g *group) string {
	if g.job.kind == stopJob || g.job.kind == reloadJob {
		return ""
	}
	for _, n := range g.spec.Deps.BindsTo {
		if o := h.find(n); o != nil && h.ordered(g, o) && !o.active() && o.job == nil {
			return fmt.Sprintf("it is bound to %s, which is not active", n)
		}
	}
	return ""
}

func (h *Host) launchStart(g *group) {
	j := g.job
	if !g.alive() && !g.active() {
		skip, failed := h.unfulfilled(g)
		if failed != "" {
			h.finish(g, failed)
			return
		}
		if skip != "" {
			g.skipped = skip
			h.finishWith(g, outcome{message: skip})
			return
		}
	}
	if len(g.services) == 0 {
		g.up = true
		if failure := h.raise(g, j.kind == restartJob); failure != "" {
			h.finish(g, failure)
			return
		}
		h.save(g)
		return
	}
	if g.staged() {
		h.launchStages(g)
		return
	}
	kind := machine.StartAsked
	if j.kind == restartJob {
		kind = machine.RestartAsked
	}
	for _, u := range g.lasting() {
		if kind == machine.StartAsked && j.boot && u.in.State == service.Exited {
			continue
		}
		h.step(u, machine.Event{
			Kind: kind, By: j.by,
			KeepCount: j.boot && g.spec.Source.Kind == service.FromPod && u.in.Run > 0,
		})
		if g.job != j {
			return
		}
	}
}

func (h *Host) stepAll(g *group, ev machine.Event) {
	j := g.job
	for _, u := range slices.Clone(g.services) {
		h.step(u, ev)
		if g.job != j {
			return
		}
	}
}

// jobSees follows a transition of a service of the job's group.
func (h *Host) jobSees(u *unit, t machine.Transition) {
	g := u.g
	j := g.job
	if u.spec.Ephemeral {
		return
	}
	if j == nil || !j.running {
		h.lost(u, t)
		return
	}
	fresh := t.Run > j.runs[u.spec.Name]
	switch j.kind {
	case startJob, restartJob:
		if j.kind == restartJob && !fresh {
			return
		}
		switch t.To {
		case service.Running, service.Exited:
			j.done[u.spec.Name] = true
		case service.Dead:
			j.done[u.spec.Name] = true
			if u.spec.Type != service.Oneshot && fresh && u.in.Stopping {
				h.fails(g, u, t.Reason)
			}
		case service.Failed, service.AutoRestart:
			j.done[u.spec.Name] = true
			h.fails(g, u, t.Reason)
		}
	case reloadJob:
		if t.From == service.Reload {
			j.done[u.spec.Name] = true
			if u.in.ReloadError != "" {
				h.fails(g, u, u.in.ReloadError)
			}
		}
	}
}

func (h *Host) fails(g *group, u *unit, reason string) {
	if g.job.failure == "" {
		g.job.failure = u.title() + ": " + reason
	}
}

// lost spreads the unexpected end of a service to those that are bound to it
// (systemd.unit(5), BindsTo=).
func (h *Host) lost(u *unit, t machine.Transition) {
	if t.To == service.Dead || t.To == service.Failed {
		h.spreadEnd(u)
	}
}

// restarts shows the end of a service to others, although it starts again by
// itself (RestartMode= of systemd.service(5)).
func (h *Host) restarts(u *unit, result service.Result) {
	if h.closing() {
		return
	}
	g := u.g
	h.spreadEnd(u)
	if result == service.Success {
		h.startAll(g.spec.Deps.OnSuccess, g.spec.OnSuccessMode, g.spec.Name+" has ended well (OnSuccess=)")
	} else {
		h.startAll(g.spec.Deps.OnFailure, g.spec.OnFailureMode, g.spec.Name+" has failed (OnFailure=)")
	}
}

func (h *Host) spreadEnd(u *unit) {
	for _, name := range h.relations().Dependents(u.g.spec.Name) {
		o := h.groups[name]
		if o == nil || o == u.g || o.idle() || o.job != nil && o.job.kind == stopJob {
			continue
		}
		switch {
		case h.stopsWith(o, u.g):
			j := &job{kind: stopJob, spread: true, by: fmt.Sprintf("it stops with %s, which has ended", u.g.spec.Name)}
			h.install(o, j, nil)
		case h.names(o.spec.Deps.BindsTo, u.g):
			o.awaits(u.g)
			j := &job{kind: stopJob, spread: true, by: fmt.Sprintf("it is bound to %s, which has ended", u.g.spec.Name)}
			h.install(o, j, nil)
		}
	}
}

// stopsWith says whether o stops when g does (PropagatesStopTo=).
func (h *Host) stopsWith(o, g *group) bool {
	return h.names(g.spec.Deps.PropagatesStopTo, o) || h.names(o.spec.Deps.StopPropagatedFrom, g)
}

// judge finishes the group's job if its services are where it wants them.
func (h *Host) judge(g *group) {
	j := g.job
	if j == nil || !j.running {
		return
	}
	for _, u := range g.services {
		if u.spec.Ephemeral && j.kind != stopJob {
			continue
		}
		if u.held != nil && j.kind != stopJob {
			if j.failure == "" {
				return
			}
			continue
		}
		if u.spec.Stage != 0 && u.over() && j.kind != stopJob {
			continue
		}
		switch j.kind {
		case startJob:
			settled := u.in.State == service.Running || u.in.State == service.Exited || u.in.State == service.Reload
			if !j.done[u.spec.Name] && !settled || settled && !h.counts(u) {
				return
			}
		case restartJob:
			if !j.done[u.spec.Name] || u.in.State == service.Running && !h.counts(u) {
				return
			}
		case stopJob:
			if u.in.State != service.Dead && u.in.State != service.Failed {
				return
			}
		case reloadJob:
			if u.in.State == service.Reload {
				return
			}
			if u.in.ReloadError != "" {
				h.fails(g, u, u.in.ReloadError)
			}
		}
	}
	h.finish(g, j.failure)
}

// counts says whether a service that runs has started as others want it: a
// unit's readiness probe is waited for.
func (h *Host) counts(u *unit) bool {
	return !u.g.unit || u.spec.Readiness == nil || u.in.IsReady(u.spec)
}

func (h *Host) finish(g *group, failure string) {
	h.finishWith(g, outcome{changed: failure == "", failure: failure})
}

// finishWith ends the group's job, tells those who wait, and lets those who
// required it fail.
func (h *Host) finishWith(g *group, o outcome) {
	j := g.job
	g.job = nil
	delete(h.pending, g.spec.Name)
	delete(h.waiting, g.spec.Name)
	h.unsettled = true
	h.dirty[g.spec.Name] = struct{}{}
	for _, tell := range j.waiters {
		tell(o)
	}
	if o.failure != "" && j.kind != stopJob && j.kind != reloadJob {
		for _, d := range h.pending {
			if d.job == nil || d.job.running || d.job.kind == stopJob || !h.ordered(d, g) {
				continue
			}
			if h.names(slices.Concat(d.spec.Deps.Requires, d.spec.Deps.BindsTo, d.spec.Deps.Requisite), g) {
				d.awaits(g)
				h.save(d)
				d.job.failure = fmt.Sprintf("%s, which it requires, did not start: %s", g.spec.Name, o.failure)
			}
		}
	}
	if g.job == nil && (g.deleting || g.gone || h.spent(g)) && g.idle() {
		h.forget(g)
	}
}

// flush judges the jobs of the groups that changed, and tells watchers.
func (h *Host) flush() {
	for len(h.dirty) > 0 {
		changed := h.dirty
		h.dirty = map[string]struct{}{}
		for name := range changed {
			g := h.groups[name]
			if g == nil {
				continue
			}
			h.advance(g)
			h.startEphemeral(g)
			h.resize(g)
			h.judge(g)
			h.follow(g)
			h.noticed(g)
			h.serveBus(g)
			if h.groups[name] != g {
				continue
			}
			if (g.deleting || g.gone || h.spent(g)) && g.job == nil && g.idle() {
				h.forget(g)
				continue
			}
			if len(h.watchers) > 0 {
				wire := h.wire(g)
				h.publish(hostapi.Event{Type: hostapi.Changed, Name: name, Group: &wire})
			}
		}
		h.dispatch()
	}
	h.endIfDown()
}
