package host

import (
	"slices"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// Services that are added to a group which runs already, as a pod's ephemeral
// containers are: see Ephemeral of service.Service.

func lasting(list []service.Service) []service.Service {
	return slices.DeleteFunc(slices.Clone(list), func(s service.Service) bool { return s.Ephemeral })
}

// lasting are the services that the group is started with.
func (g *group) lasting() []*unit {
	if !slices.ContainsFunc(g.services, func(u *unit) bool { return u.spec.Ephemeral }) {
		return g.services
	}
	return slices.DeleteFunc(slices.Clone(g.services), func(u *unit) bool { return u.spec.Ephemeral })
}

// withEphemeral is a new definition of the group, with the ephemeral services
// that it leaves out: they are there for as long as the group is.
func (g *group) withEphemeral(spec service.Group) service.Group {
	for _, s := range g.spec.Services {
		if s.Ephemeral && !slices.ContainsFunc(spec.Services, func(o service.Service) bool { return o.Name == s.Name }) {
			spec.Services = append(slices.Clone(spec.Services), s)
		}
	}
	return spec
}

// startEphemeral starts those ephemeral services of a group that runs which have
// never been started.
func (h *Host) startEphemeral(g *group) {
	if len(g.lasting()) == len(g.services) || g.deleting || h.closing() || g.job != nil && g.job.kind == stopJob {
		return
	}
	if !slices.ContainsFunc(g.lasting(), func(u *unit) bool { return !u.rests() && !u.in.Stopping }) {
		return
	}
	for _, u := range slices.Clone(g.services) {
		if u.spec.Ephemeral && u.in.Run == 0 && u.rests() {
			h.step(u, machine.Event{Kind: machine.StartAsked, By: g.by})
		}
	}
}
