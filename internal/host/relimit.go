package host

import (
	"reflect"
	"time"

	"legion.dev/legion/internal/service"
)

// redefineGroup gives a unit its new definition, and what runs of it the new
// limits.
func (h *Host) redefineGroup(g *group, spec service.Group) {
	old := map[*unit]*service.Limits{}
	for _, u := range g.services {
		old[u] = u.spec.Resources
	}
	g.define(spec, time.Now())
	for _, u := range g.services {
		before, known := old[u]
		if known && u.dir != "" && !u.rests() && !reflect.DeepEqual(before, u.spec.Resources) {
			u.unbounded = h.o.Cgroups.Relimit(u.cgroup, before, u.spec.Resources)
		}
	}
}
