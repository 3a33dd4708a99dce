package host

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
)

// cleanable are the words of systemctl's --what=.
var cleanable = []string{"configuration", "state", "cache", "logs", "runtime", "fdstore"}

// Clean removes what a group that is down has left: the directories of its
// services of these kinds, the descriptors that they have stored, and when a
// timer with Persistent= has elapsed. "all" is every kind, none cache, runtime
// and fdstore.
func (h *Host) Clean(ctx context.Context, name string, what []string) (hostapi.Result, error) {
	switch {
	case slices.Contains(what, "all"):
		what = cleanable
	case len(what) == 0:
		what = []string{"cache", "runtime", "fdstore"}
	}
	for _, w := range what {
		if !slices.Contains(cleanable, w) {
			return hostapi.Result{}, failure("invalid", "write one of "+sentence(cleanable)+", all", "%q is nothing that can be cleaned", w)
		}
	}
	var g *group
	var refused error
	var contexts []service.ExecContext
	err := h.do(ctx, func() {
		if g, refused = h.toClean(name); refused != nil {
			return
		}
		g.cleaning = true
		h.forgetElapsed(g, what)
		for _, u := range g.services {
			contexts = append(contexts, u.spec.Exec)
			if slices.Contains(what, "fdstore") {
				h.dropFiles(u, "")
			}
		}
	})
	if err != nil || refused != nil {
		return hostapi.Result{}, firstOf(err, refused)
	}
	for i := range contexts { // it may take long
		if err := h.o.Processes.Clean(&contexts[i], what); err != nil {
			refused = failure("failed", "", "cannot clean %s: %v", name, err)
		}
	}
	h.later(func() { g.cleaning = false })
	return hostapi.Result{Changed: true}, refused
}

// toClean finds the group, if it is down and has something that can be cleaned.
func (h *Host) toClean(name string) (*group, error) {
	g := h.find(name)
	switch {
	case g == nil:
		return nil, unknown(name)
	case g.cleaning:
		return nil, failure("conflict", "", "%s is being cleaned", g.spec.Name)
	case !g.idle() || g.job != nil:
		return nil, failure("conflict", "stop it first", "cannot clean %s: it is not inactive or failed", g.spec.Name)
	case g.spec.Timer != nil && g.spec.Timer.Persistent:
		return g, nil
	}
	for _, u := range g.services {
		x := &u.spec.Exec
		if len(x.Runtime)+len(x.State)+len(x.Cache)+len(x.Logs)+len(x.Configuration) > 0 || u.spec.FDStoreMax > 0 {
			return g, nil
		}
	}
	return nil, failure("invalid", "", "%s has no directories, and no file descriptors can be left with it", g.spec.Name)
}

// forgetElapsed forgets when a timer has elapsed.
func (h *Host) forgetElapsed(g *group, what []string) {
	if g.spec.Timer == nil || !slices.Contains(what, "state") {
		return
	}
	delete(h.stamps, g.spec.Name)
	if err := h.o.Store.Delete(store.Stamps, g.spec.Name); err != nil {
		h.note(g, "cannot forget when it elapsed", err)
	}
}

func (h *Host) httpClean(r *http.Request) (any, error) {
	var what []string
	for _, w := range r.URL.Query()["what"] {
		what = append(what, strings.FieldsFunc(w, func(c rune) bool { return c == ',' })...)
	}
	return h.Clean(r.Context(), r.PathValue("name"), what)
}
