// Package view shows the status of services in systemd's words. Nothing of it
// is stored.
package view

import (
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// The active states of systemd(1).
const (
	Active       = "active"
	Reloading    = "reloading"
	Inactive     = "inactive"
	Failed       = "failed"
	Activating   = "activating"
	Deactivating = "deactivating"
)

// ActiveState is systemd's high-level state for one of a service.
func ActiveState(s service.State) string {
	switch s {
	case service.Running, service.Exited:
		return Active
	case service.Reload:
		return Reloading
	case service.Failed:
		return Failed
	case service.StartPre, service.Start, service.StartPost, service.AutoRestart:
		return Activating
	case service.Stop, service.StopSigterm, service.StopSigkill, service.StopPost, service.FinalSigterm, service.FinalSigkill:
		return Deactivating
	}
	return Inactive
}

// rank orders the active states by how much a group of several services takes
// after the one that is in it.
var rank = []string{Failed, Deactivating, Activating, Reloading, Active, Inactive}

// Group gives the two words for a whole group: of several services, those of
// the one most in want of attention. A target has no services; it is active
// when it is wanted.
func Group(st service.GroupStatus) (active, sub string) {
	// What has commands is as they are, until it listens.
	if t := st.Trigger; t != nil && (len(st.Services) == 0 || st.Services[0].State == service.Exited) {
		switch t.State {
		case service.TriggerDead:
			return Inactive, string(t.State)
		case service.TriggerFailed:
			return Failed, string(t.State)
		}
		return Active, string(t.State)
	}
	if len(st.Services) == 0 {
		if st.Wanted {
			return Active, "active"
		}
		return Inactive, "dead"
	}
	best := len(rank)
	for _, s := range st.Services {
		if s.Ephemeral {
			continue
		}
		a := ActiveState(s.State)
		for i, r := range rank {
			if r == a && i < best {
				best, active, sub = i, a, string(s.State)
			}
		}
	}
	return active, sub
}

// Wire joins a group's definition and status into what the API sends.
func Wire(spec service.Group, st service.GroupStatus) hostapi.Group {
	g := hostapi.Group{Spec: spec, Status: st}
	g.ActiveState, g.SubState = Group(st)
	return g
}
