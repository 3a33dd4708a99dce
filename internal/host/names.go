package host

import (
	"fmt"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// Names tells which names on the system bus have an owner (Type=dbus).
type Names interface {
	// Watch tells of the name's owner from now on; false where there is no bus.
	Watch(name string) bool
	Forget(name string)
	Changes() <-chan NameChange
	// Serve says whether the bus is up: then it is offered to start units for
	// whoever calls a service that is not there yet.
	Serve(up bool)
	Activations() <-chan Activation
}

// Activation is the bus's request to start a unit. A success is that the service
// takes its name; Fail tells why it will not.
type Activation struct {
	Unit string
	Fail func(why string)
}

// NameChange tells whether a name has an owner.
type NameChange struct {
	Name  string
	Owned bool
}

// noNames is for a host without a system bus.
type noNames struct{}

func (noNames) Watch(string) bool              { return false }
func (noNames) Forget(string)                  {}
func (noNames) Changes() <-chan NameChange     { return nil }
func (noNames) Serve(bool)                     {}
func (noNames) Activations() <-chan Activation { return nil }

// noBus is what a Type=dbus service does without where there is no system bus.
const noBus = "BusName=: there is no system bus here, so it counts as started as soon as it is executed"

// watchName begins to watch for the name of a service that is being started, or
// was by an earlier legiond.
func (h *Host) watchName(u *unit) {
	if u.spec.Type != service.DBus || u.in.Main == nil {
		return
	}
	u.busless = !h.o.Names.Watch(u.spec.BusName)
	if u.busless {
		h.step(u, machine.Event{Kind: machine.BusNamed, Run: u.in.Run, OK: true})
	}
}

// busUnit is the unit of the system bus, whichever program it is.
const busUnit = "dbus.service"

// serveBus follows the unit of the system bus.
func (h *Host) serveBus(g *group) {
	if h.find(busUnit) == g {
		h.o.Names.Serve(g.active() && !h.closing())
	}
}

// activated starts a unit for the system bus.
func (h *Host) activated(a Activation) {
	unit := h.demand(a.Unit)
	if unit == nil {
		a.Fail(fmt.Sprintf("there is no unit %s", a.Unit))
		return
	}
	h.request(startJob, unit.spec.Name, job{by: "the system bus"}, func(o outcome) {
		if o.failure != "" {
			a.Fail(fmt.Sprintf("%s did not start: %s", unit.spec.Name, o.failure))
		}
	})
}

// named takes in whether a name has an owner.
func (h *Host) named(c NameChange) {
	for _, g := range h.groups {
		for _, u := range g.services {
			if u.spec.Type == service.DBus && u.spec.BusName == c.Name {
				h.step(u, machine.Event{Kind: machine.BusNamed, OK: c.Owned})
			}
		}
	}
}

// forgetName: the service is down, and its name is watched no more unless
// another one is to own it.
func (h *Host) forgetName(u *unit) {
	if u.spec.Type != service.DBus {
		return
	}
	for _, g := range h.groups {
		for _, other := range g.services {
			if other != u && other.spec.BusName == u.spec.BusName && other.in.State.Alive() {
				return
			}
		}
	}
	h.o.Names.Forget(u.spec.BusName)
}
