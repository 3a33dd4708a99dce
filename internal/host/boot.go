package host

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
)

// Saved is what the store held.
type Saved struct {
	Groups map[string]service.Group
	Wishes map[string]wish
	Runs   map[string]record
	Stamps map[string]stamp
}

// ReadSaved reads all of a store; what could not be read is told of.
func ReadSaved(s *store.Store) (Saved, []service.Warning) {
	var v Saved
	var all, w []service.Warning
	v.Groups, w = store.Load[service.Group](s, store.Groups)
	all = append(all, w...)
	v.Wishes, w = store.Load[wish](s, store.Wishes)
	all = append(all, w...)
	v.Runs, w = store.Load[record](s, store.Runs)
	all = append(all, w...)
	v.Stamps, w = store.Load[stamp](s, store.Stamps)
	return v, append(all, w...)
}

// load makes the groups of the unit files and of the store, takes up what
// still runs, and asks for what boot wants.
func (h *Host) load() {
	now := time.Now()
	h.startup = h.clock.Uptime()
	maps.Copy(h.stamps, h.o.Saved.Stamps)
	units, problems := h.o.Units.Load()
	h.problems = append(h.problems, problems...)
	for _, spec := range units {
		g := newGroup(spec, now)
		g.unit = true
		h.groups[spec.Name] = g
	}
	for name, spec := range h.o.Saved.Groups {
		if h.groups[name] != nil {
			h.problems = append(h.problems, service.Warning{Text: fmt.Sprintf("the group %s was put by request, and a unit file of that name is there too: the unit file counts", name)})
			continue
		}
		g := newGroup(spec, now)
		if w, ok := h.o.Saved.Wishes[name]; ok {
			g.wanted, g.by, g.deleting = w.Wanted, w.By, w.Deleting
		} else if g.by = "boot"; spec.Boot {
			h.want(g, true, g.by) // who put it came no further than its definition
		}
		h.groups[name] = g
	}
	for name, r := range h.o.Saved.Runs { // instances of templates, started by request
		if r.Boot == h.o.BootID && h.groups[name] == nil {
			h.demand(name)
		}
	}
	h.takeOver(h.o.Handover)
	h.recognize()
	var fresh []*group // with no record of this boot
	for _, g := range h.inOrder() {
		r, ok := h.o.Saved.Runs[g.spec.Name]
		if !ok || !h.resume(g, r) {
			fresh = append(fresh, g)
		}
	}
	for _, g := range h.inOrder() {
		if g.up && !slices.Contains(fresh, g) {
			h.resumeWaiting(g)
		}
	}
	h.leftovers()
	h.fulfilled()
	h.dropConsoles()
	h.o.Saved = Saved{}
	for _, w := range h.relations().problems {
		h.o.Log.Error(w.Text, "file", w.File)
	}
	for _, g := range h.groups {
		g.phase = g.currentPhase()
	}
	if name := h.o.Essential; name != "" && h.demand(name) == nil {
		h.o.Log.Error("there is no essential unit of that name", "unit", name)
		h.exitCode, h.exitReason = 1, fmt.Sprintf("there is no unit %s, which is essential", name)
		h.end(h.exitReason)
	}
	for _, g := range h.inOrder() {
		switch {
		case g.deleting:
			h.request(stopJob, g.spec.Name, job{by: g.by}, func(outcome) {})
		case !slices.Contains(fresh, g):
			if !g.wanted && g.alive() {
				h.request(stopJob, g.spec.Name, job{by: g.by}, func(outcome) {})
			}
		case h.bootWants(g), g.spec.Name == h.essentialName():
			h.boot(g)
		}
	}
	h.dispatch()
}

// recognize finds the processes of an earlier legiond where no cgroup holds them
// together: they bear the name of their run.
func (h *Host) recognize() {
	if mode, _ := h.o.Cgroups.Mode(); mode != "none" || len(h.o.Saved.Runs) == 0 {
		return
	}
	byID := h.o.Processes.Invocations()
	for _, g := range h.groups {
		r := h.o.Saved.Runs[g.spec.Name]
		if r.Boot != h.o.BootID {
			continue
		}
		for _, u := range g.services {
			id := h.invocation(u, r.Instances[u.spec.Name].Run)
			for _, pid := range byID[id] {
				h.o.Cgroups.Started(u.cgroup, pid, id)
			}
		}
	}
}

// boot starts a group because the machine, or legiond, has just started.
func (h *Host) boot(g *group) {
	by := g.by
	if by == "" {
		by = "boot"
	}
	h.request(startJob, g.spec.Name, job{by: by, boot: true}, func(o outcome) {
		if o.failure != "" {
			h.o.Log.Error("did not start at boot", "group", g.spec.Name, "reason", o.failure)
		}
	})
}

func (h *Host) bootWants(g *group) bool {
	if !g.unit {
		return g.wanted
	}
	if g.spec.Boot {
		return true
	}
	// Enabled by its [Install] section alone, without the links that
	// systemctl makes.
	return h.o.BootAll && len(g.spec.Deps.WantedBy)+len(g.spec.Deps.RequiredBy) > 0
}

// resume gives the services their instances back. It reports false where these
// are of an earlier boot: then only what counts over boots is kept.
func (h *Host) resume(g *group, r record) bool {
	same := r.Boot == h.o.BootID
	if same {
		g.up, g.frozen = r.Up, r.Frozen
		if g.unit {
			g.wanted, g.by = r.Wanted, r.By
		}
		g.waits = r.Waits
		g.deleting = g.deleting || r.Deleting
	}
	if same {
		h.resumeTrigger(g, r)
	}
	for _, u := range g.services {
		if wait, ok := r.Held[u.spec.Name]; ok && same {
			u.held = &wait
		}
	}
	for _, u := range g.services {
		in, ok := r.Instances[u.spec.Name]
		if !ok {
			continue
		}
		if !same {
			h.afterBoot(u, in)
			continue
		}
		u.in, u.fixed, u.values = in, u.spec.Fixed, r.Values[u.spec.Name]
		if fixed, ok := r.Fixed[u.spec.Name]; ok {
			u.fixed = fixed
		}
		if r.Tmp != "" && !u.rests() {
			h.guests[g.spec.Name] = r.Tmp
		}
		h.adopt(u)
	}
	h.dirty[g.spec.Name] = struct{}{}
	return same
}

// afterBoot keeps run numbers, the count and the last run of an earlier boot.
func (h *Host) afterBoot(u *unit, in machine.Instance) {
	now := time.Now()
	n := machine.New(now)
	n.Run, n.Procs, n.Restarts, n.Newest, n.Previous = in.Run, in.Procs, in.Restarts, in.Newest, in.Previous
	n.Reason = "not started since the machine or legiond did"
	if n.Newest != nil && n.Newest.Exit == nil {
		n.Newest.Exit = &service.Exit{At: now, Unknown: true}
	}
	u.in = n
}

// adopt takes up the processes that an earlier legiond of the same boot
// started, and lets the machine know of those that are gone.
func (h *Host) adopt(u *unit) {
	mustExist := u.in.State.Alive() || u.in.Main != nil || u.in.Control != nil
	if mustExist {
		if dir, err := h.o.Cgroups.Create(u.cgroup); err == nil {
			u.dir = dir
		}
		stdout, _, err := h.o.Logs.Attach(u.g.spec.Name, u.spec.Name, u.in.Run)
		if err != nil {
			h.note(u.g, "cannot take up its output again", err)
		}
		h.resumeConsole(u, stdout)
	}
	now := time.Now()
	if every := u.spec.Watchdog; !u.in.Watchdog.IsZero() {
		u.in.Watchdog = now.Add(max(every, u.in.WatchdogEvery))
	}
	notify := u.spec.Type == service.Notify || u.spec.Type == service.NotifyReload
	u.in.Missed = u.in.Missed || notify && u.in.State == service.Start && (h.o.Handover == nil || h.o.Handover.Crashed)
	// Each step makes the instance anew, so these are what was saved.
	for i, p := range [...]*machine.Proc{u.in.Main, u.in.Control} {
		if p == nil {
			continue
		}
		if p.PID == 0 {
			h.adoptIntent(u, *p, i == 0)
			continue
		}
		if x, ok := h.early.byPID[p.PID]; ok && x.StartTicks == p.StartTicks {
			h.early.forget(x)
			h.step(u, machine.Event{Kind: machine.MainExited, Run: u.in.Run, Proc: p.ID, Exit: x.Exit})
			continue
		}
		process, err := h.o.Processes.Adopt(p.PID, p.StartTicks)
		if err == nil {
			h.own(u, u.in.Run, p.ID, process)
			continue
		}
		exit := service.Exit{At: now, Unknown: true}
		if !errors.Is(err, ErrGone) {
			h.note(u.g, fmt.Sprintf("cannot take up process %d again", p.PID), err)
		}
		h.step(u, machine.Event{Kind: machine.MainExited, Run: u.in.Run, Proc: p.ID, Exit: exit})
	}
	h.watchName(u)
	for _, e := range machine.Resume(u.config(), u.in, now) {
		h.carryOut(u, e, now)
	}
	if u.in.Main == nil && u.in.Control == nil && u.in.State.Alive() && !h.o.Cgroups.Populated(u.cgroup) {
		h.step(u, machine.Event{Kind: machine.Emptied})
	}
}

// leftovers notes state of groups that are defined nowhere any more, and ends
// what of them still runs.
func (h *Host) leftovers() {
	for name, r := range h.o.Saved.Runs {
		if h.groups[name] != nil {
			continue
		}
		running := false
		for _, in := range r.Instances {
			running = running || in.State.Alive()
		}
		if running && r.Boot == h.o.BootID {
			if err := h.o.Cgroups.Kill(name); err != nil {
				h.problems = append(h.problems, service.Warning{Text: fmt.Sprintf("%s is defined nowhere any more, and what runs of it could not be ended: %v", name, err)})
				continue
			}
		}
		if err := h.o.Store.Delete(store.Runs, name); err != nil {
			h.problems = append(h.problems, service.Warning{Text: err.Error()})
		}
	}
}

// fulfilled removes the wishes for groups to be gone, of those that are. Another
// group that is put under the name would be deleted by it.
func (h *Host) fulfilled() {
	for name, w := range h.o.Saved.Wishes {
		if _, there := h.o.Saved.Groups[name]; there || !w.Deleting {
			continue
		}
		if err := h.o.Store.Delete(store.Wishes, name); err != nil {
			h.problems = append(h.problems, service.Warning{Text: err.Error()})
		}
	}
}
