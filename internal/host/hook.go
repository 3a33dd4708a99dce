package host

import (
	"context"
	"fmt"
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// longestHook bounds a hook that a stop does not end before.
const longestHook = 10 * time.Minute

// ask makes the request of a hook that has one in place of a process. It is
// given up when the service leaves the state that it belongs to.
func (h *Host) ask(u *unit, e machine.Spawn, c service.Command) {
	ctx, cancel := context.WithCancel(h.ctx)
	u.endHook = cancel
	group, name := u.g.spec.Name, u.spec.Name
	go func() {
		defer cancel()
		p := &service.Probe{HTTP: c.HTTP, Timeout: longestHook}
		ok, message := h.o.Probes.Probe(ctx, p, Target{Group: group, Service: name, Run: e.Run, Context: &service.ExecContext{}})
		h.later(func() {
			if ok || c.IgnoreFailure {
				if !ok {
					h.o.Log.Warn("a hook failed", "group", group, "service", name, "hook", c.Path, "reason", message)
				}
				h.step(u, machine.Event{Kind: machine.ControlExited, Run: e.Run, Proc: e.Proc, Exit: service.Exit{At: time.Now()}})
				return
			}
			h.step(u, machine.Event{Kind: machine.SpawnFailed, Run: e.Run, Proc: e.Proc, Message: fmt.Sprintf("%s hook %s failed: %s", e.Kind, c.Path, message)})
		})
	}()
}

// leaveHook gives up the request of a hook whose time is over.
func (u *unit) leaveHook(to service.State) {
	if u.endHook != nil && to != service.StartPost && to != service.Stop {
		u.endHook()
		u.endHook = nil
	}
}
