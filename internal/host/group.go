package host

import (
	"context"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/timer"
	"legion.dev/legion/internal/view"
)

// group is one group on this host: its definition, what is wanted of it, and
// what its services do. Only the loop touches it.
type group struct {
	spec service.Group
	// unit: it comes from a unit file; else it was put by request.
	unit bool
	// gone: its unit file is; it is forgotten once it has stopped.
	gone bool
	// demanded: the unit file was read because somebody asked for the unit.
	demanded bool
	// phase is what follow has seen last; waits are the groups for want of
	// which this one is down.
	phase    phase
	waits    []string
	wanted   bool
	by       string
	deleting bool
	// up is whether a group without services, a target, is active.
	up       bool
	services []*unit
	job      *job
	// bounds are the limits of all services that were set last.
	bounds *service.Limits
	// timer is set for a timer that is up. broken is why a timer, path or
	// socket has failed.
	timer  *timer.Instance
	broken string
	// sockets and path are set for a socket and a path that are up.
	sockets *sockets
	path    *path
	// listener is the socket unit that a connection's instance came from.
	listener string
	// began and ended are the uptimes at which the group last left, and came
	// back to, rest; zero for never.
	began, ended time.Duration
	// frozen: its processes are suspended; cleaning: its directories are being
	// removed.
	frozen, cleaning bool
	// orphan: the transient timer that started it is gone.
	orphan bool
	// skipped is why the last start was skipped by a condition.
	skipped string
	history []hostapi.Transition
	// stopBy is when the grace period of a stop in stages ends; zero for none.
	stopBy time.Time
	// failures are what could not be done for the group (its state on disk).
	failures []service.Warning
}

// unit is one service of a group, with its machine.
type unit struct {
	g      *group
	spec   *service.Service
	in     machine.Instance
	cgroup string // relative path
	procs  map[uint64]Process
	// called is the name of a run, the newest as a rule.
	called struct {
		run uint64
		id  string
	}
	// dir is the cgroup's directory, once made.
	dir string
	// unbounded are the limits that the machine cannot keep; ooms is how many
	// processes had died for want of memory when it was last looked.
	unbounded []string
	// bounds are the limits that were set last for what runs, bounding that they
	// are being set anew; fixed is that of the definition at the start of the run.
	bounds   *service.Limits
	bounding bool
	fixed    string
	// values are those of the context's FileVariables, as they were at the start.
	values []*string
	// busless: it is of Type=dbus, and there is no system bus.
	busless bool
	ooms    int
	// held is a start, stop a stop, that waits for other stages of the group.
	held *held
	stop *machine.Event
	// endHook gives up the request of a hook, where one is under way.
	endHook context.CancelFunc
	// conn is the connection that the service is for, until it has it.
	conn *File
	// kept are the descriptors that the service has left here.
	kept []File
	// console is what an earlier legiond has left, until it is taken up.
	console []File
	// birth is the newest start that others may join.
	birth *birth
}

// record is a group on disk, in the store's Runs.
type record struct {
	// Boot names the life of the machine, or of legiond where it ended in good
	// order, in which the instances are true.
	Boot      string                      `json:"boot"`
	Wanted    bool                        `json:"wanted,omitempty"`
	By        string                      `json:"by,omitempty"`
	Deleting  bool                        `json:"deleting,omitempty"`
	Up        bool                        `json:"up,omitempty"`
	Frozen    bool                        `json:"frozen,omitempty"`
	Timer     *timer.Instance             `json:"timer,omitempty"`
	Waits     []string                    `json:"waits,omitempty"`
	Instances map[string]machine.Instance `json:"instances,omitempty"`
	Held      map[string]held             `json:"held,omitempty"`
	Fixed     map[string]string           `json:"fixed,omitempty"`
	// Values are those of the services' FileVariables.
	Values map[string][]*string `json:"values,omitempty"`
	// Tmp is the unit whose /tmp this one sees; empty for its own.
	Tmp string `json:"tmp,omitempty"`
}

// wish is what is wanted of a group that was put, in the store's Wishes.
type wish struct {
	Wanted   bool   `json:"wanted"`
	By       string `json:"by,omitempty"`
	Deleting bool   `json:"deleting,omitempty"`
}

func newGroup(spec service.Group, now time.Time) *group {
	g := &group{}
	g.define(spec, now)
	return g
}

// define gives the group its definition. Services that stay keep their
// instance; new ones begin dead.
func (g *group) define(spec service.Group, now time.Time) {
	old := g.services
	g.spec, g.services = spec, nil
	for i := range spec.Services {
		s := &g.spec.Services[i]
		k := slices.IndexFunc(old, func(u *unit) bool { return u.spec.Name == s.Name })
		u := &unit{g: g, in: machine.New(now), procs: map[uint64]Process{}}
		if k >= 0 {
			u = old[k]
		}
		u.spec = s
		u.cgroup = spec.Name
		if len(spec.Services) > 1 || s.Name != spec.Name {
			u.cgroup += "/" + s.Name
		}
		g.services = append(g.services, u)
	}
}

// config is what the machine is told about the service.
func (u *unit) config() machine.Config {
	return machine.Config{Service: u.spec, StartLimit: u.g.spec.StartLimit, Grace: u.g.spec.Grace}
}

func (u *unit) title() string {
	if u.spec.Name == u.g.spec.Name {
		return u.g.spec.Name
	}
	return u.g.spec.Name + "/" + u.spec.Name
}

// alive says whether a process of the group may be running or about to.
func (g *group) alive() bool {
	for _, u := range g.services {
		if u.in.State.Alive() {
			return true
		}
	}
	return false
}

// active says whether others may count on the group: it runs, or has done what
// remains.
func (g *group) active() bool {
	if len(g.services) == 0 {
		return g.up
	}
	for _, u := range g.lasting() {
		if u.spec.Stage != 0 && u.over() {
			continue
		}
		switch u.in.State {
		case service.Running, service.Exited, service.Reload:
		default:
			return false
		}
	}
	return true
}

// idle says whether a stop would change nothing.
func (g *group) idle() bool {
	if len(g.services) == 0 {
		return !g.up
	}
	for _, u := range g.services {
		if u.in.State != service.Dead && u.in.State != service.Failed {
			return false
		}
	}
	return true
}

// waitsForRestart says whether a service of the group is between two runs.
func (g *group) waitsForRestart() bool {
	return slices.ContainsFunc(g.services, func(u *unit) bool { return u.in.State == service.AutoRestart })
}

// idleBut says whether no other service of the group has anything running.
func (g *group) idleBut(u *unit) bool {
	for _, o := range g.services {
		if o != u && (o.held != nil || !o.rests()) {
			return false
		}
	}
	return true
}

func (g *group) status(logs Logs, lost []string, without func(*service.ExecContext) []string) service.GroupStatus {
	st := service.GroupStatus{
		Name: g.spec.Name, Wanted: g.wanted, By: g.by, Deleting: g.deleting, Frozen: g.frozen,
		Warnings: slices.Concat(g.spec.Warnings, g.failures),
	}
	if len(g.services) == 0 {
		st.Wanted = g.up
	}
	st.Trigger = g.trigger()
	for _, u := range g.services {
		s := u.in.Status(u.spec)
		s.Ephemeral = u.spec.Ephemeral
		if g.resizable() {
			s.Bounds, s.Fixed = u.bounds, u.fixed
		}
		s.Cgroup, s.LogDir, s.Lost = u.dir, logs.Dir(g.spec.Name, u.spec.Name), slices.Concat(lost, without(&u.spec.Exec), u.unbounded)
		if u.busless {
			s.Lost = append(s.Lost, noBus)
		}
		if g.skipped != "" && s.State == service.Dead {
			s.Reason = g.skipped
		}
		if u.held != nil && u.rests() {
			s.Held, s.Reason = true, g.waitsFor(u)
		}
		if u.held != nil && u.held.All {
			s.Again = u.held.By
		}
		st.Services = append(st.Services, s)
	}
	return st
}

func (h *Host) wire(g *group) hostapi.Group {
	w := view.Wire(g.spec, g.status(h.o.Logs, h.o.Cgroups.Lost(), h.o.Processes.Without))
	if j := g.job; j != nil {
		w.Job = &hostapi.Job{ID: j.id, Type: string(j.kind), Running: j.running, By: j.by}
	}
	return w
}

// historyLength is how many transitions are kept in memory for each group.
const historyLength = 40

func (g *group) remember(t hostapi.Transition) {
	if len(g.history) >= historyLength {
		g.history = append(g.history[:0], g.history[1:]...)
	}
	g.history = append(g.history, t)
}

// canReload says whether any service of the group knows how.
func (g *group) canReload() bool {
	for _, u := range g.services {
		if len(u.spec.Reload) > 0 || u.spec.Type == service.NotifyReload {
			return true
		}
	}
	return false
}

// sentence joins what is listed for a person.
func sentence(words []string) string { return strings.Join(words, ", ") }
