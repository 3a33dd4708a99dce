package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"legion.dev/legion/internal/service"
)

// Paths watches what path units look at.
type Paths interface {
	// Watch begins to tell of changes under the name.
	Watch(name string, p *service.Path) error
	Forget(name string)
	Changes() <-chan PathChange
}

// PathChange tells that something has changed at the paths of a unit.
type PathChange struct {
	Name string
	// Touched: it is a change that PathChanged= or PathModified= is for.
	Touched bool
}

// noPaths is for a host that watches none.
type noPaths struct{}

func (noPaths) Watch(string, *service.Path) error { return errors.New("this host watches no paths") }
func (noPaths) Forget(string)                     {}
func (noPaths) Changes() <-chan PathChange        { return nil }

// path is a path unit that is up.
type path struct {
	state service.TriggerState
	since time.Time
	last  time.Time
	trips []time.Time
}

func (h *Host) raisePath(g *group) string {
	spec := g.spec.Path
	if h.demand(spec.Unit) == nil {
		return fmt.Sprintf("there is no unit %s to start", spec.Unit)
	}
	if spec.MakeDirectory {
		if err := makePaths(spec); err != nil {
			return err.Error()
		}
	}
	if err := h.o.Paths.Watch(g.spec.Name, spec); err != nil {
		return err.Error()
	}
	g.path = &path{}
	h.lookAt(g, false)
	return g.broken
}

// makePaths makes the directories that are looked at (systemd.path(5),
// MakeDirectory=).
func makePaths(p *service.Path) error {
	mode := os.FileMode(0o755)
	if p.DirectoryMode != 0 {
		mode = os.FileMode(p.DirectoryMode)
	}
	for _, c := range p.Conditions {
		if c.Kind == "Exists" || c.Kind == "ExistsGlob" {
			continue
		}
		if err := os.MkdirAll(c.Path, mode); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot make the directory to look at: %w", err)
		}
	}
	return nil
}

func (h *Host) lowerPath(g *group) {
	if g.path == nil {
		return
	}
	h.o.Paths.Forget(g.spec.Name)
	g.path = nil
}

// lookAt starts the unit if the paths say so, and else waits for them.
func (h *Host) lookAt(g *group, touched bool) {
	k, spec := g.path, g.spec.Path
	unit := h.find(spec.Unit)
	state := service.TriggerWaiting
	trip := false
	switch {
	case unit != nil && (!unit.idle() || unit.job != nil):
		state = service.TriggerRunning
	case touched || holds(spec):
		state, trip = service.TriggerRunning, true
	}
	if k.state != state {
		k.state, k.since = state, h.clock.Real()
		h.dirty[g.spec.Name] = struct{}{}
	}
	if !trip {
		return
	}
	if limited(&k.trips, spec.Limit, pathTripBurst, time.Now()) {
		h.breaks(g, spec.Unit+" was started too often, and the path is still as it was")
		return
	}
	k.last = h.clock.Real()
	h.trip(g, spec.Unit, g.spec.Name+" has seen its path")
}

// holds says whether one of the conditions that describe a state is true.
func holds(p *service.Path) bool {
	for _, c := range p.Conditions {
		ok := false
		switch c.Kind {
		case "Exists":
			_, err := os.Stat(c.Path)
			ok = err == nil
		case "ExistsGlob":
			found, _ := filepath.Glob(c.Path)
			ok = len(found) > 0
		case "DirectoryNotEmpty":
			entries, err := os.ReadDir(c.Path)
			ok = err == nil && len(entries) > 0
		}
		if ok {
			return true
		}
	}
	return false
}

// pathChanged: something has changed at the paths of a unit. What changes while
// its unit runs is that unit's affair.
func (h *Host) pathChanged(c PathChange) {
	g := h.groups[c.Name]
	if g == nil || g.path == nil || g.broken != "" || h.closing() {
		return
	}
	if g.path.state == service.TriggerWaiting {
		h.lookAt(g, c.Touched)
	}
}

func (h *Host) pathNoticed(g, unit *group) {
	if hit := limitHit(unit); hit != "" && g.path.state == service.TriggerRunning {
		h.breaks(g, hit)
		return
	}
	h.lookAt(g, false)
}
