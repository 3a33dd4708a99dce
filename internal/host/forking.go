package host

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// findMain looks for the main process that a Type=forking service left behind,
// or takes the one that MAINPID= names.
func (h *Host) findMain(u *unit, e machine.FindMain) {
	pid, err := e.PID, error(nil)
	if pid == 0 {
		pid, err = h.lookForMain(u)
	}
	var p Process
	if err == nil {
		p, err = h.adoptMain(u, pid)
	}
	if err != nil {
		ev := machine.Event{Kind: machine.MainMissing, Run: e.Run, Message: err.Error()}
		if e.PID == 0 {
			ev.Exit, ev.Gone = h.goneDaemon(u, pid)
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

// movedOn: a daemon may put another process in its main one's place, as long as
// it writes that one into its PID file before the old one ends (systemd does so,
// too; nginx and others are upgraded in this way).
func (h *Host) movedOn(o owner) bool {
	m := o.u.in.Main
	up := o.u.in.State == service.StartPost || o.u.in.State == service.Running || o.u.in.State == service.Reload
	if !up || m == nil || m.ID != o.proc || o.u.spec.PIDFile == "" {
		return false
	}
	pid, err := h.lookForMain(o.u)
	if err != nil || pid == m.PID {
		return false
	}
	p, err := h.adoptMain(o.u, pid)
	if err != nil {
		return false
	}
	h.own(o.u, o.run, o.u.in.Procs+1, p)
	h.step(o.u, machine.Event{Kind: machine.MainFound, Run: o.run, PID: pid, StartTicks: p.StartTicks()})
	h.exitedEarly(pid)
	return true
}

func (h *Host) adoptMain(u *unit, pid int) (Process, error) {
	if pid <= 1 || pid == os.Getpid() {
		return nil, fmt.Errorf("process %d cannot be the main process of a service", pid)
	}
	if mode, _ := h.o.Cgroups.Mode(); mode != "none" {
		if _, ok := h.o.Cgroups.Of(pid, []string{u.cgroup}); !ok {
			return nil, fmt.Errorf("process %d is not one of %s", pid, u.title())
		}
	}
	p, err := h.o.Processes.Adopt(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return p, nil
}

func (h *Host) lookForMain(u *unit) (int, error) {
	if file := u.spec.PIDFile; file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return 0, fmt.Errorf("no main process yet: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err != nil || pid <= 1 {
			return 0, fmt.Errorf("%s does not hold a process ID", file)
		}
		return pid, nil
	}
	pids, err := h.o.Cgroups.Pids(u.cgroup)
	if err != nil {
		return 0, err
	}
	if len(pids) == 1 {
		return pids[0], nil
	}
	// As systemd: the one whose parent is the service manager, if it is alone.
	var found []int
	for _, pid := range pids {
		if parent(pid) == os.Getpid() || parent(pid) == 1 {
			found = append(found, pid)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return 0, fmt.Errorf("%d processes, and no telling which is the main one", len(pids))
}

func parent(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

// goneDaemon says whether the process that the PID file names has ended, and how
// if legiond saw it. A file from before this life says nothing of it.
func (h *Host) goneDaemon(u *unit, pid int) (service.Exit, bool) {
	const tick = 20 * time.Millisecond // by which a file's time may lag behind
	if st, err := os.Stat(u.spec.PIDFile); pid == 0 || err != nil || st.ModTime().Before(u.in.Since.Add(-tick)) {
		return service.Exit{}, false
	}
	if _, ok := h.owners[pid]; ok {
		return service.Exit{}, false // it is another service's
	}
	p, err := h.o.Processes.Adopt(pid, 0)
	if err == nil {
		p.Close()
	}
	if x, ok := h.early[pid]; ok {
		return x.Exit, errors.Is(err, ErrGone)
	}
	return service.Exit{At: time.Now(), Unknown: true}, errors.Is(err, ErrGone)
}
