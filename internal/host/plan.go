package host

import (
	"slices"

	"legion.dev/legion/internal/graph"
	"legion.dev/legion/internal/service"
)

// relations are how the groups hang together, worked out anew when the set of
// definitions has changed.
type relations struct {
	*graph.Graph
	// starters[a] are the timers, paths and sockets that start a.
	starters map[string][]string
	problems []service.Warning
	// before[a] are the groups that start before a, after[a] those after it.
	before, after map[string][]string
	// uses[a] are the groups that a wants, requires or upholds, of those that
	// stop when nobody does.
	uses map[string][]string
	// joins[a] are the units that a joins the namespaces of, or that join its.
	joins map[string][]string
}

func (h *Host) relations() *relations {
	if h.graph != nil {
		return h.graph
	}
	specs := make([]service.Group, 0, len(h.groups))
	for _, g := range h.inOrder() {
		specs = append(specs, g.spec)
	}
	r := &relations{before: map[string][]string{}, after: map[string][]string{}, uses: map[string][]string{}}
	r.Graph, r.problems = graph.New(specs)
	r.starters = map[string][]string{}
	for name, g := range h.groups {
		if g.spec.Trigger() {
			unit := g.spec.Triggers()
			if to, ok := r.Resolve(unit); ok {
				unit = to
			}
			r.starters[unit] = append(r.starters[unit], name)
		}
		r.before[name] = r.Before(name)
		for _, n := range r.before[name] {
			r.after[n] = append(r.after[n], name)
		}
	}
	for name, g := range h.groups {
		if g.spec.StopWhenUnneeded {
			for _, n := range r.Users(name) {
				r.uses[n] = append(r.uses[n], name)
			}
		}
	}
	r.joined(h.groups)
	h.graph = r
	return r
}

// plan gathers the jobs that a request brings with it.
func (h *Host) plan(kind jobKind, name string) (graph.Plan, error) {
	active := func(n string) bool {
		g := h.groups[n]
		return g != nil && !g.idle()
	}
	r := h.relations()
	switch kind {
	case startJob:
		// What waits for its restart is not there for those who need it now.
		return r.Start(name, func(n string) bool { return active(n) && !h.groups[n].waitsForRestart() })
	case restartJob:
		return r.Restart(name, active)
	case stopJob:
		return r.Stop(name, active)
	}
	// A reload goes on to others (systemd.unit(5), PropagatesReloadTo=).
	plan := graph.Plan{{Group: name, Kind: graph.Kind(kind)}}
	for i := 0; i < len(plan); i++ {
		for _, n := range r.Reloads(plan[i].Group) {
			known := slices.ContainsFunc(plan, func(s graph.Step) bool { return s.Group == n })
			if g := h.groups[n]; g != nil && !known && g.active() {
				plan = append(plan, graph.Step{Group: n, Kind: graph.Kind(kind), Reason: "reloads with " + plan[i].Group})
			}
		}
	}
	return plan, nil
}

// find looks a group up by its name or an alias.
func (h *Host) find(name string) *group {
	if g := h.groups[name]; g != nil {
		return g
	}
	to, ok := h.relations().Resolve(name)
	if !ok {
		return nil
	}
	return h.groups[to]
}

// ordered says whether g comes after o.
func (h *Host) ordered(g, o *group) bool {
	return slices.Contains(h.relations().before[g.spec.Name], o.spec.Name)
}

// names says whether the list has the group, under any of its names.
func (h *Host) names(list []string, g *group) bool {
	for _, n := range list {
		if n == g.spec.Name || slices.Contains(g.spec.Deps.Aliases, n) {
			return true
		}
	}
	return false
}
