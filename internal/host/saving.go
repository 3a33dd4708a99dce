package host

import (
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/store"
)

// record is what is known of a group.
func (h *Host) record(g *group) record {
	r := record{Timer: g.timer, Boot: h.o.BootID, Wanted: g.wanted, By: g.by, Deleting: g.deleting, Up: g.up, Frozen: g.frozen, Waits: g.waits, Tmp: h.guests[g.spec.Name], Instances: map[string]machine.Instance{}}
	for _, u := range g.services {
		r.Instances[u.spec.Name] = u.in
		if u.fixed != "" {
			if r.Fixed == nil {
				r.Fixed = map[string]string{}
			}
			r.Fixed[u.spec.Name] = u.fixed
		}
		if u.values != nil {
			if r.Values == nil {
				r.Values = map[string][]*string{}
			}
			r.Values[u.spec.Name] = u.values
		}
		if u.held != nil {
			if r.Held == nil {
				r.Held = map[string]held{}
			}
			r.Held[u.spec.Name] = *u.held
		}
	}
	return r
}

const notSaved = "cannot write its state, so a legiond that takes over would not know it"

// save writes what is known of a group; the disk is not waited for.
func (h *Host) save(g *group) {
	h.point("before a write")
	defer h.point("after a write")
	if err := h.o.Store.Save(store.Runs, g.spec.Name, h.record(g)); err != nil {
		h.note(g, notSaved, err)
		h.unsaved[g.spec.Name] = struct{}{}
	} else if _, was := h.unsaved[g.spec.Name]; was {
		h.saved(g)
	}
}

func (h *Host) saved(g *group) {
	h.works(g, notSaved)
	delete(h.unsaved, g.spec.Name)
}

const wishNotSaved = "cannot write what is wanted of it"

// writeWish writes what is wanted of a group that was put.
func (h *Host) writeWish(g *group) error {
	w := wish{Wanted: g.wanted, By: g.by, Deleting: g.deleting}
	if err := h.o.Store.Save(store.Wishes, g.spec.Name, w); err != nil {
		return err
	}
	if _, was := h.unwished[g.spec.Name]; was {
		h.works(g, wishNotSaved)
		delete(h.unwished, g.spec.Name)
		h.dirty[g.spec.Name] = struct{}{}
	}
	return nil
}

// saveAgain writes what could not be written before: there may be room now.
func (h *Host) saveAgain() {
	for name := range h.unwished {
		g := h.groups[name]
		if g == nil || g.unit {
			delete(h.unwished, name)
			continue
		}
		if h.writeWish(g) != nil {
			return // it was said
		}
	}
	for name := range h.unsaved {
		g := h.groups[name]
		if g == nil {
			delete(h.unsaved, name)
			continue
		}
		if err := h.o.Store.Save(store.Runs, name, h.record(g)); err != nil {
			return // it was said
		}
		h.saved(g)
		h.dirty[name] = struct{}{}
	}
}
