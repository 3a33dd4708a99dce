package host

import (
	"fmt"
	"slices"
	"time"

	"legion.dev/legion/internal/machine"
)

// A service may end in a way after which all of its group start again, as a
// container does by a rule with RestartAllContainers: see Restart.All of package
// service. What runs of the others is killed at once, and the stages begin with
// the first. Services that were added (Ephemeral) and one that only holds a
// namespace stay.

// restartAll sees whether a service calls for all to start again.
func (h *Host) restartAll(g *group) {
	if !g.wanted || g.deleting || h.closing() || g.job != nil && (g.job.kind == stopJob || g.job.kind == restartJob) {
		return
	}
	i := slices.IndexFunc(g.lasting(), func(u *unit) bool { return u.held == nil && u.in.CallsAll(u.spec) })
	if i < 0 {
		return
	}
	source := g.lasting()[i]
	by := fmt.Sprintf("%s %s, and by its rule all start again", source.spec.Name, machine.ExitWords(*source.in.Newest.Exit))
	all := slices.DeleteFunc(slices.Clone(g.lasting()), func(u *unit) bool { return u.holds() })
	for _, u := range all {
		u.held, u.stop = &held{By: by, Keep: true, All: true}, nil
	}
	h.save(g)
	h.dirty[g.spec.Name] = struct{}{}
	for _, u := range all {
		if !u.rests() {
			h.step(u, machine.Event{Kind: machine.StopAsked, By: by, Grace: new(time.Duration)})
		}
	}
}

// endsForAll says whether something runs yet that is to start again with all.
func (g *group) endsForAll() bool {
	return slices.ContainsFunc(g.services, func(u *unit) bool { return u.held != nil && u.held.All && !u.rests() })
}

// holds says whether containers of the group are in the service's PID namespace.
func (u *unit) holds() bool {
	return slices.ContainsFunc(u.g.services, func(o *unit) bool {
		c := o.spec.Exec.Container
		return c != nil && c.PIDs == u.spec.Name
	})
}
