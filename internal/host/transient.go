package host

import (
	"fmt"
	"slices"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// transientKey marks a group that is forgotten once it has ended: "success" if
// it did not fail, "always" in any case (CollectMode= of systemd.unit(5)).
const transientKey = "legion.dev/transient"

func (g *group) transient() bool {
	mode := g.spec.Annotations[transientKey]
	return !g.unit && (mode == "success" || mode == "always")
}

// spent says whether a transient group has done what it was made for: a timer
// once it is down, and what it starts once it is gone, too.
func (h *Host) spent(g *group) bool {
	switch {
	case !g.transient():
		return false
	case g.spec.Timer != nil:
		return !g.up
	case slices.ContainsFunc(h.relations().starters[g.spec.Name], func(n string) bool { return h.groups[n] != nil }):
		return false
	}
	ran := g.orphan
	for _, u := range g.services {
		ran = ran || u.in.Run > 0
		if u.in.State != service.Dead && (u.in.State != service.Failed || g.spec.Annotations[transientKey] == "success") {
			return false
		}
	}
	return ran
}

// orphaned has what a transient timer started looked at: it may be spent.
func (h *Host) orphaned(timer *group) {
	if o := h.groups[timer.spec.Triggers()]; timer.transient() && o != nil {
		o.orphan = true
		h.dirty[o.spec.Name] = struct{}{}
	}
}

// adoptStranger takes a process that runs already for the service's own, with
// all that it starts from now on: systemd-run --scope.
func (h *Host) adoptStranger(u *unit, e machine.Spawn, a *service.Adopted) {
	p, dir, err := h.takeIn(u, a)
	go h.later(func() {
		if err == nil {
			u.dir = dir
			h.own(u, e.Run, e.Proc, p)
			h.step(u, machine.Event{Kind: machine.Spawned, Run: e.Run, Proc: e.Proc, PID: p.PID(), StartTicks: p.StartTicks()})
			h.exitedEarly(p.PID())
			return
		}
		h.step(u, machine.Event{Kind: machine.SpawnFailed, Run: e.Run, Proc: e.Proc, Message: fmt.Sprintf("cannot take process %d in: %v", a.PID, err)})
	})
}

func (h *Host) takeIn(u *unit, a *service.Adopted) (Process, string, error) {
	p, err := h.o.Processes.Adopt(a.PID, a.StartTicks)
	if err != nil {
		return nil, "", err
	}
	dir, err := h.o.Cgroups.Create(u.cgroup)
	if err == nil {
		err = h.o.Cgroups.Move(u.cgroup, a.PID)
	}
	if err != nil {
		p.Close()
		return nil, "", err
	}
	if r := u.spec.Resources; r != nil {
		u.unbounded = h.o.Cgroups.Relimit(u.cgroup, nil, r)
	}
	return p, dir, nil
}
