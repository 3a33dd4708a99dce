package host

import (
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// A socket unit with commands (ExecStartPre= and its like of systemd.socket(5))
// is a group with one service: its start, between the commands, is that the
// sockets are opened.

// open carries out the start of such a service.
func (h *Host) open(u *unit, e machine.Spawn) {
	g := u.g
	failure := ""
	if !g.up { // else an earlier legiond has come so far
		g.broken = ""
		failure = h.raiseSocket(g)
		g.up = failure == ""
		h.save(g)
	}
	go h.later(func() {
		ev := machine.Event{Kind: machine.MainExited, Run: e.Run, Proc: e.Proc, Exit: service.Exit{At: time.Now()}}
		if failure != "" {
			ev = machine.Event{Kind: machine.SpawnFailed, Run: e.Run, Proc: e.Proc, Message: "cannot listen: " + failure}
		}
		h.step(u, ev)
	})
}

// closes takes the sockets away once the commands before that have run.
func (h *Host) closes(u *unit, to service.State) {
	g := u.g
	if g.spec.Socket == nil || !g.up || to != service.StopPost && to != service.Dead && to != service.Failed {
		return
	}
	g.up = false
	h.lowerSocket(g)
	h.save(g)
}

// gotCommands is for a socket unit that is up and whose file has got commands:
// they count from its end on.
func (g *group) gotCommands() {
	if g.spec.Socket == nil || !g.up {
		return
	}
	for _, u := range g.services {
		if u.in.State == service.Dead && u.in.Run == 0 {
			u.in.State, u.in.Since, u.in.Reason = service.Exited, time.Now(), "it listens since before its unit file had commands"
		}
	}
}
