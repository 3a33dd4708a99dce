package host

import (
	"fmt"
	"slices"

	"legion.dev/legion/internal/graph"
	"legion.dev/legion/internal/service"
)

// transaction gathers the jobs of a request as its mode wants them, and takes
// away those that are not to be beside them.
func (h *Host) transaction(kind jobKind, name string, mode service.JobMode) (graph.Plan, error) {
	plan, err := graph.Plan{{Group: name, Kind: graph.Kind(kind)}}, error(nil)
	if mode != service.JobIgnoreDependencies && mode != service.JobIgnoreRequirements {
		plan, err = h.plan(kind, name)
	}
	if err == nil && mode == service.JobIsolate {
		plan, err = h.isolated(plan, kind, name)
	}
	if err != nil {
		return nil, err
	}
	for _, p := range plan {
		if p.Kind != graph.Stop && h.groups[p.Group].cleaning {
			return nil, fmt.Errorf("cannot %s %s: what %s has left is being removed", kind, name, p.Group)
		}
		old := h.groups[p.Group].job
		if old == nil || (old.kind == stopJob) == (p.Kind == graph.Stop) {
			continue
		}
		if old.mode == service.JobReplaceIrreversibly || mode == service.JobFail {
			return nil, fmt.Errorf("cannot %s %s: it would take the place of a %s of %s that is under way (%s)", kind, name, old.kind, p.Group, old.by)
		}
	}
	if mode == service.JobFlush || mode == service.JobIsolate {
		h.flushJobs(plan, fmt.Sprintf("the %s of %s has cancelled all other jobs (mode %s)", kind, name, mode))
	}
	return plan, nil
}

// flushJobs cancels the jobs of the groups that the plan leaves out.
func (h *Host) flushJobs(plan graph.Plan, why string) {
	for _, g := range byName(h.pending) {
		if g.job != nil && g.unit && g.job.mode != service.JobReplaceIrreversibly && !planned(plan, g.spec.Name) {
			h.finish(g, why)
		}
	}
}

func planned(plan graph.Plan, name string) bool {
	return slices.ContainsFunc(plan, func(p graph.Step) bool { return p.Group == name })
}

// isolated adds the stops of all units that the named one does not bring with
// it. Pods are not units: whoever has put them says when they end.
func (h *Host) isolated(plan graph.Plan, kind jobKind, name string) (graph.Plan, error) {
	switch {
	case kind != startJob:
		return nil, fmt.Errorf("the mode isolate is for a start, not for a %s", kind)
	case !h.groups[name].spec.AllowIsolate:
		return nil, fmt.Errorf("cannot isolate %s: its unit file does not allow that (AllowIsolate=)", name)
	}
	kept := h.brings(name)
	for _, p := range plan {
		kept[p.Group] = true
	}
	for _, g := range h.inOrder() {
		n := g.spec.Name
		if !g.unit || kept[n] || g.spec.IgnoreOnIsolate || g.idle() && g.job == nil {
			continue
		}
		if slices.ContainsFunc(h.relations().starters[n], func(s string) bool { return kept[s] }) {
			continue // a timer, path or socket that stays has started it
		}
		plan = append(plan, graph.Step{Group: n, Kind: graph.Stop, Reason: name + " is isolated"})
	}
	return plan, nil
}

// brings are the groups that a start of the named one brings with it, active or
// not.
func (h *Host) brings(name string) map[string]bool {
	all := map[string]bool{name: true}
	for todo := []string{name}; len(todo) > 0; todo = todo[1:] {
		d := h.groups[todo[0]].spec.Deps
		for _, n := range slices.Concat(d.Requires, d.Requisite, d.Wants, d.BindsTo, d.Upholds) {
			if g := h.find(n); g != nil && !all[g.spec.Name] {
				all[g.spec.Name] = true
				todo = append(todo, g.spec.Name)
			}
		}
	}
	return all
}
