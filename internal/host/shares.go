package host

import (
	"slices"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// What units have in common by JoinsNamespaceOf= (systemd.unit(5)): the
// directories that they see as /tmp and /var/tmp belong to one of them, and are
// there until none of them needs them; a network and an IPC namespace is that of
// a process which runs.

// birth is a start that others may have to wait for: they join its process.
type birth struct {
	// before are the starts under way whose process may be joined; pid is one
	// that runs, 0 for none.
	before []*birth
	pid    int
	// done is closed at the end, with the process in born where there is one.
	done chan struct{}
	born int
}

// joinable is the process whose namespaces are to be joined. The starts that are
// waited for come before this one in the order in which starts are carried out.
func (b *birth) joinable() int {
	if b == nil {
		return 0
	}
	for _, o := range b.before {
		<-o.done
		if b.pid == 0 {
			b.pid = o.born
		}
	}
	return b.pid
}

func (b *birth) is(p Process) {
	if b != nil && p != nil {
		b.born = p.PID()
	}
}

func (b *birth) end() {
	if b != nil {
		close(b.done)
	}
}

func (b *birth) underWay() bool {
	if b == nil {
		return false
	}
	select {
	case <-b.done:
		return false
	default:
		return true
	}
}

// joined adds to the relations which units join one another, in both directions.
func (r *relations) joined(groups map[string]*group) {
	r.joins = map[string][]string{}
	for name, g := range groups {
		for _, n := range g.spec.Deps.JoinsNamespaceOf {
			if to, ok := r.Resolve(n); ok && to != name {
				r.joins[name] = append(r.joins[name], to)
				r.joins[to] = append(r.joins[to], name)
			}
		}
	}
}

// peers are the units that u may have something in common with: those that it
// joins and that join it, and theirs.
func (h *Host) peers(u *unit) []*unit {
	joins := h.relations().joins
	names := []string{u.g.spec.Name}
	var out []*unit
	for i := 0; i < len(names); i++ {
		list := slices.Sorted(slices.Values(joins[names[i]]))
		for _, n := range list {
			if slices.Contains(names, n) {
				continue
			}
			names = append(names, n)
			if g := h.groups[n]; g != nil && g.single() {
				out = append(out, g.services[0])
			}
		}
	}
	return out
}

// single says whether the group is one service of its name, as of a unit file.
func (g *group) single() bool {
	return len(g.services) == 1 && g.services[0].spec.Name == g.spec.Name
}

// share settles what a start has in common with others; nil where there is
// nothing that it could have.
func (h *Host) share(u *unit, e machine.Spawn) *birth {
	x := u.spec.Exec.Sandbox
	if x == nil || !u.g.single() {
		return nil
	}
	peers := h.peers(u)
	if len(peers) == 0 {
		return nil
	}
	if x.PrivateTmp && (e.Kind == service.StartPre || e.Kind == service.Start) && e.Index == 0 {
		h.shareTmp(u, peers)
	}
	if !x.PrivateNetwork && !x.PrivateIPC {
		return nil
	}
	b := &birth{done: make(chan struct{})}
	// Its own commands are where its main process is.
	for _, o := range append([]*unit{u}, peers...) {
		if !joinable(x, o) {
			continue
		}
		if pid := o.process(); b.pid == 0 && pid != 0 {
			b.pid = pid
		}
		if o.birth.underWay() {
			b.before = append(b.before, o.birth)
		}
	}
	u.birth = b
	return b
}

// joinable says whether a unit has a namespace of a kind that x asks for.
func joinable(x *service.Sandbox, o *unit) bool {
	c := &o.spec.Exec
	network, ipc := c.NetworkNamespacePath != "", false
	if s := c.Sandbox; s != nil {
		network, ipc = network || s.PrivateNetwork, s.PrivateIPC
	}
	return x.PrivateNetwork && network || x.PrivateIPC && ipc
}

// process is one of the unit's processes that is in its namespaces, 0 for none.
func (u *unit) process() int {
	for _, p := range []*machine.Proc{u.in.Main, u.in.Control} {
		if p != nil && p.PID != 0 {
			return p.PID
		}
	}
	return 0
}

// shareTmp has the unit see the /tmp of a peer that has one now. It stays with
// that until its run has ended.
func (h *Host) shareTmp(u *unit, peers []*unit) {
	name := u.g.spec.Name
	if h.guests[name] != "" {
		return
	}
	for _, o := range peers {
		if s := o.spec.Exec.Sandbox; s == nil || !s.PrivateTmp || o.rests() {
			continue
		}
		if owner := h.tmpOf(o); owner != name {
			h.guests[name] = owner
			h.save(u.g) // before a process sees it
		}
		return
	}
}

// tmpOf names the unit whose /tmp the unit sees.
func (h *Host) tmpOf(u *unit) string {
	if owner := h.guests[u.g.spec.Name]; owner != "" {
		return owner
	}
	return u.g.spec.Name
}

// leaveTmp removes the /tmp of a run that has ended, unless another unit sees it.
func (h *Host) leaveTmp(u *unit) error {
	if s := u.spec.Exec.Sandbox; s == nil || !s.PrivateTmp {
		return nil
	}
	name, owner := u.g.spec.Name, h.tmpOf(u)
	delete(h.guests, name)
	for _, other := range h.guests {
		if other == owner {
			return nil
		}
	}
	if owner == name {
		return h.o.Processes.RemoveTmp(name, u.spec.Name)
	}
	if o := h.groups[owner]; o != nil && o.single() && h.guests[owner] == "" && !o.services[0].rests() {
		return nil
	}
	return h.o.Processes.RemoveTmp(owner, owner)
}
