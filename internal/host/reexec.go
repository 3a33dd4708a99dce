package host

import (
	"context"
	"errors"

	"legion.dev/legion/internal/hostapi"
)

// ErrReexec is what Run returns where legiond is to execute itself anew: every
// process goes on, and Handover tells the next program what the store does not.
var ErrReexec = errors.New("legiond is to be executed anew")

// Handover is what a legiond gives to the one that takes its place in the same
// process, or what was kept of one that was killed.
type Handover struct {
	// Crashed: it was killed, and more than this is lost.
	Crashed bool `json:"-"`
	// Exits and Notes had come and were not dealt with.
	Exits []Exited  `json:"exits,omitempty"`
	Notes []Message `json:"notes,omitempty"`
	// Kept are the services' descriptors, by the path of their cgroup.
	Kept map[string][]File `json:"kept,omitempty"`
	// Sockets are those of the socket units, by name.
	Sockets map[string][]int `json:"sockets,omitempty"`
	// Consoles are the services', by the path of their cgroup.
	Consoles map[string][]File `json:"consoles,omitempty"`
}

// FDs are all descriptors in it.
func (v *Handover) FDs() []int {
	var all []int
	for _, m := range v.Notes {
		all = append(all, m.FDs...)
	}
	for _, by := range []map[string][]File{v.Kept, v.Consoles} {
		for _, list := range by {
			for _, f := range list {
				all = append(all, f.FD)
			}
		}
	}
	for _, fds := range v.Sockets {
		all = append(all, fds...)
	}
	return all
}

// Reexec makes Run return ErrReexec as soon as no process is between fork and
// exec; starts that come meanwhile are left to the next legiond.
func (h *Host) Reexec(ctx context.Context) (hostapi.Result, error) {
	if h.o.Successor == nil {
		return hostapi.Result{}, failure("failed", "", "this legiond cannot be executed anew")
	}
	if err := h.o.Successor(ctx); err != nil {
		return hostapi.Result{}, failure("failed", "put a legiond that works in its place, then ask again", "legiond goes on as it is: %v", err)
	}
	err := h.do(ctx, func() { h.reexec = true })
	return hostapi.Result{Changed: true, Message: "legiond is executed anew; nothing that it runs is touched"}, err
}

// leave ends the loop's work in good order for the next one.
func (h *Host) leave() {
	v := Handover{Kept: map[string][]File{}, Sockets: map[string][]int{}}
	for _, g := range h.inOrder() {
		h.save(g)
		if g.sockets != nil {
			v.Sockets[g.spec.Name] = g.sockets.fds
		}
		for _, u := range g.services {
			if len(u.kept) > 0 {
				v.Kept[u.cgroup] = u.kept
			}
		}
	}
	v.Exits = append(v.Exits, h.early.all()...)
	go h.o.Processes.Suspend()
	for x := range h.o.Processes.Exits() {
		if x.PID == 0 {
			break
		}
		v.Exits = append(v.Exits, x)
	}
	v.Notes = append(v.Notes, h.earlyNotes...)
	h.o.Notes.Suspend()
	for m := range h.o.Notes.Messages() {
		v.Notes = append(v.Notes, m)
	}
	if lines := h.o.Syslog.Lines(); lines != nil {
		h.o.Syslog.Suspend()
		for l := range lines {
			h.said(l)
		}
	}
	v.Consoles = h.o.Consoles.Suspend()
	h.sync()
	h.handover = v
}

// Handover is what Run has left when it returned ErrReexec.
func (h *Host) Handover() Handover { return h.handover }

// takeOver gives the services what the legiond before has handed over.
func (h *Host) takeOver(v *Handover) {
	if v == nil {
		return
	}
	for _, x := range v.Exits {
		h.early.put(x)
	}
	for _, g := range h.groups {
		for _, u := range g.services {
			u.kept = v.Kept[u.cgroup]
			delete(v.Kept, u.cgroup)
			h.putKept(u, u.kept)
			u.console = v.Consoles[u.cgroup]
			delete(v.Consoles, u.cgroup)
		}
	}
	for name, fds := range v.Sockets {
		if g := h.groups[name]; g == nil || g.spec.Socket == nil {
			closeAll(fds)
			h.o.Keeper.Drop(socketKey(name), "")
		}
	}
	for cgroup, list := range v.Kept {
		h.giveUp(keptKey(cgroup), list)
	}
	for cgroup, list := range v.Consoles {
		h.giveUp(consoleKey(cgroup), list)
	}
}

// giveUp closes files that are for nobody.
func (h *Host) giveUp(key string, list []File) {
	h.o.Keeper.Drop(key, "")
	for _, f := range list {
		closeAll([]int{f.FD})
	}
}
