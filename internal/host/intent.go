package host

import (
	"slices"
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// birthWait bounds how long what an earlier legiond has forked may take until it
// has executed its program.
const birthWait = 5 * time.Second

// adoptIntent: the earlier legiond meant to start a process, and ended before
// it could write down which. If it is there it is the one; else it is started
// now. Nothing is ever started twice.
func (h *Host) adoptIntent(u *unit, p machine.Proc, main bool) {
	heirs := h.heirs(u, p)
	if process := h.leader(u, p, heirs); process != nil {
		h.own(u, u.in.Run, p.ID, process)
		h.step(u, machine.Event{Kind: machine.Spawned, Run: u.in.Run, Proc: p.ID, PID: process.PID(), StartTicks: process.StartTicks()})
		return
	}
	if len(heirs) > 0 {
		// It ran, left others behind and ended.
		h.step(u, machine.Event{Kind: machine.MainExited, Run: u.in.Run, Proc: p.ID, Exit: service.Exit{At: time.Now(), Unknown: true}})
		return
	}
	h.spawn(u, machine.Spawn{Run: u.in.Run, Proc: p.ID, Main: main, Kind: p.Kind, Index: p.Index})
}

// heirs are the processes of the service that come from the start p: the one
// that was started and those that it has started. What was forked goes on to
// execute its program without the legiond that has forked it, and nobody can
// tell what it is before: it is waited for. What does not get so far is ended.
func (h *Host) heirs(u *unit, p machine.Proc) []int {
	for late := time.Now().Add(birthWait); ; time.Sleep(time.Millisecond) {
		k := h.kin(u, p)
		over := time.Now().After(late)
		// One that has ended before it was looked at may have been the start,
		// and have left a daemon behind since the list was made.
		again := len(k.unborn) > 0 || k.gone && len(k.heirs) == 0 && !over
		if !again || time.Since(late) > birthWait {
			return k.heirs
		}
		if over {
			h.endUnborn(k.unborn)
		}
	}
}

// kin is what the processes of a service are to one start of it.
type kin struct {
	heirs []int
	// unborn may be its heirs once they have executed their program.
	unborn []int
	// gone: some were listed and had ended before they were looked at.
	gone bool
}

// kin looks at each process of the service's cgroup once.
func (h *Host) kin(u *unit, p machine.Proc) kin {
	pids, err := h.o.Cgroups.Pids(u.cgroup)
	if err != nil {
		h.note(u.g, "cannot list the processes of the cgroup", err)
	}
	mark := h.processMark(u, u.in.Run, p.ID)
	var k kin
	for _, pid := range pids {
		if h.isKnown(u, pid) {
			continue
		}
		origin := h.o.Processes.Origin(pid, mark)
		// A process whose parent is another one of the cgroup is that
		// one's affair: a legiond may be a service, too.
		orphan := origin != Heir && !slices.Contains(pids, parent(pid))
		switch {
		case origin == Heir, origin == Nameless && orphan && u.alone(p) && h.o.Processes.Leads(pid):
			k.heirs = append(k.heirs, pid)
		case origin == Unborn && orphan:
			k.unborn = append(k.unborn, pid)
		case origin == Gone:
			k.gone = true
		}
	}
	slices.Sort(k.heirs) // of two that began in one tick the lower one
	return k
}

// isKnown says whether a process is the service's other one.
func (h *Host) isKnown(u *unit, pid int) bool {
	return u.in.Main != nil && u.in.Main.PID == pid || u.in.Control != nil && u.in.Control.PID == pid
}

// alone says whether p is the service's first process of all that are there: a
// daemon which writes over its environment (setproctitle) is known by that.
func (u *unit) alone(p machine.Proc) bool {
	return p.Kind == service.Start && (u.in.Main == nil || u.in.Main.ID == p.ID) && (u.in.Control == nil || u.in.Control.ID == p.ID)
}

// leader is the heir that was started itself, nil if it has ended: of those that
// began their session, as it did, the eldest.
func (h *Host) leader(u *unit, p machine.Proc, heirs []int) Process {
	var eldest Process
	for _, pid := range heirs {
		if !h.o.Processes.Leads(pid) || u.daemon(p, pid) {
			continue // it was started by the one that is looked for
		}
		process, err := h.o.Processes.Adopt(pid, 0)
		switch {
		case err != nil:
		case eldest == nil || process.StartTicks() < eldest.StartTicks():
			if eldest != nil {
				eldest.Close()
			}
			eldest = process
		default:
			process.Close()
		}
	}
	return eldest
}

// daemon says whether a process is the one that the start command p of a
// Type=forking service has left behind.
func (u *unit) daemon(p machine.Proc, pid int) bool {
	if u.spec.Type != service.Forking || p.Kind != service.Start || u.spec.PIDFile == "" {
		return false
	}
	named, _, err := readPIDFile(u.spec.PIDFile)
	return err == nil && named == pid
}

// endUnborn ends what has not reached exec: nobody waits for it any more.
func (h *Host) endUnborn(pids []int) {
	for _, pid := range pids {
		if p, err := h.o.Processes.Adopt(pid, 0); err == nil {
			_ = p.Signal(9) // it may have ended by itself
			p.Close()
		}
	}
}
