package host

import (
	"context"
	"fmt"
	"slices"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// Explain says why a group is as it is.
func (h *Host) Explain(ctx context.Context, name string) (hostapi.Explanation, error) {
	var v hostapi.Explanation
	var missing error
	err := h.do(ctx, func() {
		g := h.find(name)
		if g == nil {
			missing = unknown(name)
			return
		}
		v = h.explain(g, time.Now())
	})
	return v, firstOf(err, missing)
}

func (h *Host) explain(g *group, now time.Time) hostapi.Explanation {
	v := hostapi.Explanation{Group: h.wire(g), Why: []string{}, History: slices.Clone(g.history)}
	for _, u := range g.services {
		v.Why = append(v.Why, why(u, now)...)
		v.Next = append(v.Next, next(u, now)...)
	}
	if g.spec.Trigger() {
		h.explainTrigger(g, &v)
	} else if len(g.services) == 0 {
		v.Why = append(v.Why, "It is a target: it has no process, and is active once what it wants was started.")
	}
	if g.skipped != "" {
		v.Why = append(v.Why, "The last start was skipped: "+g.skipped+".")
	}
	switch {
	case g.deleting:
		v.Asked = append(v.Asked, fmt.Sprintf("It is to be deleted (%s).", g.by))
	case g.by == "":
		v.Asked = append(v.Asked, "Nobody has asked for it to run.")
	case g.wanted:
		v.Asked = append(v.Asked, fmt.Sprintf("It is wanted (%s).", g.by))
	default:
		v.Asked = append(v.Asked, fmt.Sprintf("It is to be stopped (%s).", g.by))
	}
	if j := g.job; j != nil {
		words := fmt.Sprintf("A %s is under way (%s).", j.kind, j.by)
		if !j.running {
			words = fmt.Sprintf("A %s (%s) waits for the jobs of %s.", j.kind, j.by, sentence(h.blockers(g, 0)))
		}
		v.Waits = append(v.Waits, words)
	}
	return v
}

func why(u *unit, now time.Time) []string {
	in := &u.in
	lines := []string{fmt.Sprintf("%s is %s since %s: %s.", u.title(), in.State, ago(now, in.Since), in.Reason)}
	if in.Result != service.Success && in.Result != "" {
		lines = append(lines, fmt.Sprintf("The result of its last run is %s.", in.Result))
	}
	if n := in.Newest; n != nil && n.Exit != nil {
		lines = append(lines, fmt.Sprintf("Its last main process (%d) %s, %s.", n.PID, machine.ExitWords(*n.Exit), ago(now, n.Exit.At)+" ago"))
	}
	if in.Restarts > 0 {
		lines = append(lines, fmt.Sprintf("It was restarted %d times.", in.Restarts))
	}
	if in.Probe != "" {
		lines = append(lines, in.Probe+".")
	}
	return lines
}

func next(u *unit, now time.Time) []string {
	in := &u.in
	in2 := func(t time.Time) string { return t.Sub(now).Round(time.Millisecond).String() }
	switch {
	case in.State == service.AutoRestart && !in.Deadline.IsZero():
		return []string{fmt.Sprintf("It starts again in %s.", in2(in.Deadline))}
	case in.State == service.StopSigterm && !in.Deadline.IsZero() && !u.spec.Kill.NoSIGKILL:
		return []string{fmt.Sprintf("What still runs is killed in %s.", in2(in.Deadline))}
	case !in.Deadline.IsZero():
		return []string{fmt.Sprintf("If nothing happens, %s ends by timeout in %s.", in.State, in2(in.Deadline))}
	case in.State == service.Running && u.spec.Restart.Mode != "" && u.spec.Restart.Mode != service.RestartNo:
		return []string{fmt.Sprintf("If it ends, it is restarted as Restart=%s says.", u.spec.Restart.Mode)}
	case in.State == service.Failed:
		return []string{"Nothing, until it is started again by request."}
	}
	return nil
}

func ago(now, then time.Time) string {
	d := now.Sub(then)
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
