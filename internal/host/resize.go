package host

import (
	"reflect"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// resizable: what the group's definition says of limits holds for what runs, too.
func (g *group) resizable() bool { return g.spec.Source.Kind == service.FromPod }

// resize brings what runs of a pod to the limits of its definition: by setting
// them, or by another run where the definition says so (Fixed of
// service.Service).
func (h *Host) resize(g *group) {
	if !g.resizable() || g.deleting || h.closing() || g.job != nil {
		return
	}
	for _, u := range g.services {
		switch main := u.in.Main; {
		case main == nil || main.PID == 0 || u.in.Stopping || u.in.Again:
		case u.fixed != u.spec.Fixed && u.in.State == service.Running:
			h.step(u, machine.Event{Kind: machine.RestartAsked, By: "a change of its resources", KeepCount: true})
		case !u.bounding && !(reflect.DeepEqual(u.bounds, u.spec.Resources) && reflect.DeepEqual(g.bounds, g.spec.Resources)):
			h.bound(u)
		}
	}
}

// bound sets the limits of a service that runs, beside the loop.
func (h *Host) bound(u *unit) {
	u.bounding = true
	path, group, own, together := u.cgroup, u.g.spec.Name, u.spec.Resources, u.g.spec.Resources
	ownBefore, before := u.bounds, u.g.bounds
	h.starts.add(func() {
		// A service may have no more than its group: which comes first depends
		// on whether they are raised, so the group's are set on either side.
		_ = h.o.Cgroups.Relimit(group, before, together)
		lost := h.o.Cgroups.Relimit(path, ownBefore, own)
		lost = append(lost, h.o.Cgroups.Relimit(group, before, together)...)
		h.later(func() {
			u.bounding, u.unbounded = false, lost
			u.g.bounds, u.bounds = together, own
			h.dirty[group] = struct{}{}
		})
	})
}
