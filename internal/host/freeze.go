package host

import (
	"context"
	"net/http"

	"legion.dev/legion/internal/hostapi"
)

// Freeze suspends all processes of a group, or lets them go on. Whatever is to be
// done to the group lets them go on, too.
func (h *Host) Freeze(ctx context.Context, name string, frozen bool) (hostapi.Result, error) {
	var res hostapi.Result
	var refused error
	err := h.do(ctx, func() {
		g := h.find(name)
		switch {
		case g == nil:
			refused = unknown(name)
		case len(g.services) == 0:
			refused = failure("invalid", "", "%s has no processes", g.spec.Name)
		case frozen && (g.job != nil || !g.active()):
			refused = failure("conflict", "start it first", "cannot freeze %s: it is not active, or about to change", g.spec.Name)
		case g.frozen == frozen:
		default:
			res.Changed, refused = true, h.freeze(g, frozen)
		}
	})
	return res, firstOf(err, refused)
}

func (h *Host) freeze(g *group, frozen bool) error {
	for _, u := range g.services {
		if err := h.o.Cgroups.Freeze(u.cgroup, frozen); err != nil && frozen {
			_ = h.freeze(g, false)
			return failure("failed", "", "cannot freeze %s: %v", g.spec.Name, err)
		}
	}
	g.frozen = frozen
	h.save(g)
	h.dirty[g.spec.Name] = struct{}{}
	return nil
}

// thawed lets a group go on: a command in a frozen cgroup would never end, and a
// signal never come.
func (h *Host) thawed(g *group) {
	if g.frozen {
		_ = h.freeze(g, false)
	}
}

func (h *Host) httpFreeze(frozen bool) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) { return h.Freeze(r.Context(), r.PathValue("name"), frozen) }
}
