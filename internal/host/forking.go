package host

import (
	"errors"
	"fmt"
	"os"
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/procstat"
	"legion.dev/legion/internal/service"
)

// findMain looks for the main process that a Type=forking service left behind,
// or takes the one that MAINPID= names.
func (h *Host) findMain(u *unit, e machine.FindMain) {
	pid, by, err := e.PID, uint32(0), error(nil)
	switch {
	case pid == 0:
		pid, by, err = h.lookForMain(u)
	case u.in.Main != nil:
		by = userOf(u.in.Main.PID)
	}
	var p Process
	if err == nil {
		p, err = h.adoptMain(u, pid, by)
	}
	if err != nil {
		if e.PID == 0 && h.takeEnded(u, e.Run, pid) {
			return
		}
		ev := machine.Event{Kind: machine.MainMissing, Run: e.Run, Message: err.Error()}
		if e.PID == 0 {
			ev.Exit, ev.Gone = h.goneDaemon(u, pid)
			ev.Untold = ev.Exit.Unknown && h.o.Processes.Untold()
		}
		h.step(u, ev)
		return
	}
	proc := u.in.Procs + 1 // the number that the machine gives it
	if m := u.in.Main; m != nil {
		if m.PID == pid {
			return
		}
		delete(u.procs, m.ID)
		delete(h.owners, m.PID)
	}
	h.own(u, e.Run, proc, p)
	h.step(u, machine.Event{Kind: machine.MainFound, Run: e.Run, PID: pid, StartTicks: p.StartTicks()})
	h.exitedEarly(pid)
}

// takeEnded takes up a main process that has ended before it could be adopted,
// for the way in which it did: the PID file names it, and nothing is left of the
// service. A container whose command takes a few milliseconds is such a one.
func (h *Host) takeEnded(u *unit, run uint64, pid int) bool {
	if !h.namedNow(u, pid) || h.o.Cgroups.Populated(u.cgroup) {
		return false
	}
	proc := u.in.Procs + 1 // the number that the machine gives it
	p, err := h.o.Processes.Adopt(pid, 0)
	x, told := h.early.byPID[pid]
	switch st, e := procstat.Read(pid); {
	case err == nil && e == nil && st.State() == 'Z':
		h.own(u, run, proc, p)
		x.StartTicks = p.StartTicks()
	case err == nil:
		p.Close() // it lives and is another's
		return false
	case !told || x.Exit.At.Before(u.in.Since):
		return false // its exit is not told yet, or its number was another's before
	default:
		h.owners[pid] = owner{u: u, proc: proc, run: run, ticks: x.StartTicks}
	}
	h.step(u, machine.Event{Kind: machine.MainFound, Run: run, PID: pid, StartTicks: x.StartTicks})
	h.exitedEarly(pid)
	return true
}

// movedOn: a daemon may put another process in its main one's place, as long as
// it writes that one into its PID file before the old one ends (systemd does so,
// too; nginx and others are upgraded in this way).
func (h *Host) movedOn(o owner) bool {
	m := o.u.in.Main
	up := o.u.in.State == service.StartPost || o.u.in.State == service.Running || o.u.in.State == service.Reload
	if !up || m == nil || m.ID != o.proc || o.u.spec.PIDFile == "" {
		return false
	}
	pid, by, err := h.lookForMain(o.u)
	if err != nil || pid == m.PID {
		return false
	}
	p, err := h.adoptMain(o.u, pid, by)
	if err != nil {
		return false
	}
	h.own(o.u, o.run, o.u.in.Procs+1, p)
	h.step(o.u, machine.Event{Kind: machine.MainFound, Run: o.run, PID: pid, StartTicks: p.StartTicks()})
	h.exitedEarly(pid)
	return true
}

// adoptMain makes a process the service's main one that the user by has named.
func (h *Host) adoptMain(u *unit, pid int, by uint32) (Process, error) {
	if pid <= 1 || pid == os.Getpid() {
		return nil, fmt.Errorf("process %d cannot be the main process of a service", pid)
	}
	if _, ok := h.o.Cgroups.Of(pid, []string{u.cgroup}); !ok {
		if mode, _ := h.o.Cgroups.Mode(); mode != "none" {
			return nil, fmt.Errorf("process %d is not one of %s", pid, u.title())
		}
		if !mayName(by, pid) {
			return nil, fmt.Errorf("process %d is not known as one of %s, and is another user's than the one who names it", pid, u.title())
		}
	}
	p, err := h.o.Processes.Adopt(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return p, nil
}

// lookForMain finds the process that is to be the main one, and the user who
// says so, 0 where legiond itself does.
func (h *Host) lookForMain(u *unit) (pid int, by uint32, err error) {
	if file := u.spec.PIDFile; file != "" {
		return readPIDFile(file)
	}
	pids, err := h.o.Cgroups.Pids(u.cgroup)
	if err != nil {
		return 0, 0, err
	}
	if len(pids) == 1 {
		return pids[0], 0, nil
	}
	// As systemd: the one whose parent is the service manager, if it is alone.
	var found []int
	for _, pid := range pids {
		if p := parent(pid); p == os.Getpid() || p == 1 {
			found = append(found, pid)
		}
	}
	if len(found) == 1 {
		return found[0], 0, nil
	}
	return 0, 0, fmt.Errorf("%d processes, and no telling which is the main one", len(pids))
}

// parent is 0 for a process that is gone.
func parent(pid int) int {
	st, err := procstat.Read(pid)
	if err != nil {
		return 0
	}
	return st.Number(procstat.Parent)
}

// namedNow says whether the PID file names the process in this life of the
// service, and it is not another service's. A file from before says nothing.
func (h *Host) namedNow(u *unit, pid int) bool {
	const tick = 20 * time.Millisecond // by which a file's time may lag behind
	if pid <= 1 || u.spec.PIDFile == "" {
		return false
	}
	st, err := os.Stat(u.spec.PIDFile)
	_, owned := h.owners[pid]
	return err == nil && !st.ModTime().Before(u.in.Since.Add(-tick)) && !owned
}

// goneDaemon says whether the process that the PID file names has ended, and how
// if legiond saw it.
func (h *Host) goneDaemon(u *unit, pid int) (service.Exit, bool) {
	if !h.namedNow(u, pid) {
		return service.Exit{}, false
	}
	p, err := h.o.Processes.Adopt(pid, 0)
	if err == nil {
		p.Close()
	}
	if x, ok := h.early.byPID[pid]; ok {
		return x.Exit, errors.Is(err, ErrGone)
	}
	return service.Exit{At: time.Now(), Unknown: true}, errors.Is(err, ErrGone)
}
