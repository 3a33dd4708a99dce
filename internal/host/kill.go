package host

import (
	"context"
	"net/http"
	"strconv"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
)

// Kill sends a signal to processes of a group: to all of them, or ("main") to
// the main process of each service. It changes nothing that is wanted: what
// ends by it is restarted as Restart= says.
func (h *Host) Kill(ctx context.Context, name, whom string, number int) (hostapi.Result, error) {
	var res hostapi.Result
	var refused error
	err := h.do(ctx, func() { res, refused = h.kill(name, whom, number) })
	return res, firstOf(err, refused)
}

func (h *Host) kill(name, whom string, number int) (hostapi.Result, error) {
	g := h.find(name)
	switch {
	case g == nil:
		return hostapi.Result{}, unknown(name)
	case number < 1 || number > 64:
		return hostapi.Result{}, failure("invalid", "", "%d is not the number of a signal", number)
	case whom != "main" && whom != "all" && whom != "control":
		return hostapi.Result{}, failure("invalid", "write main, control or all", "%q names no processes", whom)
	}
	reached := false
	for _, u := range g.services {
		did, err := h.killService(u, whom, number)
		if err != nil {
			return hostapi.Result{}, failure("failed", "", "cannot send %s to %s: %v", machine.SignalName(number), u.title(), err)
		}
		reached = reached || did
	}
	if !reached {
		return hostapi.Result{}, failure("conflict", "", "%s has no %s process to send %s to", g.spec.Name, map[string]string{"main": "main", "control": "helper", "all": ""}[whom], machine.SignalName(number))
	}
	return hostapi.Result{Changed: true}, nil
}

func (h *Host) killService(u *unit, whom string, number int) (bool, error) {
	var procs []*machine.Proc
	if whom != "control" {
		procs = append(procs, u.in.Main)
	}
	if whom != "main" {
		procs = append(procs, u.in.Control)
	}
	reached := false
	var known []int
	for _, p := range procs {
		if p == nil || p.PID <= 0 {
			continue
		}
		o, ok := h.owners[p.PID]
		if !ok || o.u != u || u.procs[o.proc] == nil {
			continue
		}
		if err := u.procs[o.proc].Signal(number); err != nil {
			return reached, err
		}
		reached, known = true, append(known, p.PID)
	}
	if whom != "all" {
		return reached, nil
	}
	pids, err := h.o.Cgroups.Pids(u.cgroup)
	if err != nil || len(pids) <= len(known) {
		return reached, nil // without a cgroup only these are known
	}
	return true, h.o.Cgroups.Signal(u.cgroup, number, known)
}

func (h *Host) httpKill(r *http.Request) (any, error) {
	q := r.URL.Query()
	number, err := strconv.Atoi(q.Get("signal"))
	if err != nil {
		return nil, failure("invalid", "", "the query's signal=%s is not a number", q.Get("signal"))
	}
	return h.Kill(r.Context(), r.PathValue("name"), q.Get("whom"), number)
}
