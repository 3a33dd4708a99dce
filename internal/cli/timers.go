package cli

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"legion.dev/legion/internal/hostapi"
)

// timers keeps the timers, in the order in which they elapse.
func timers(groups []hostapi.Group) []hostapi.Group {
	out := []hostapi.Group{}
	for _, g := range groups {
		if g.Spec.Timer != nil {
			out = append(out, g)
		}
	}
	sort.SliceStable(out, func(i, j int) bool {
		a, b := out[i].Status.Trigger, out[j].Status.Trigger
		switch {
		case a == nil || a.Next.IsZero():
			return false
		case b == nil || b.Next.IsZero():
			return true
		}
		return a.Next.Before(b.Next)
	})
	return out
}

// timerTable prints the timers; inactive ones only if all is set.
func (s *session) timerTable(groups []hostapi.Group, all bool, now time.Time) error {
	rows := [][]string{{" ", "NEXT", "LEFT", "LAST", "PASSED", "UNIT", "ACTIVATES"}}
	hidden := 0
	for _, g := range groups {
		t := g.Status.Trigger
		if t == nil || idle(g) && !all {
			hidden++
			continue
		}
		next, left, last, passed := "-", "-", "-", "-"
		if !t.Next.IsZero() {
			next, left = moment(t.Next), strings.TrimPrefix(until(now, t.Next), "in ")
		}
		if !t.Last.IsZero() {
			last, passed = moment(t.Last), ago(now, t.Last)
		}
		rows = append(rows, []string{s.dot(g.ActiveState), next, left, last, passed, title(g), g.Spec.Triggers()})
	}
	if hidden > 0 {
		defer fmt.Fprintf(s.Out, "\n%d inactive, not shown; legion list --timers --all shows them\n", hidden)
	}
	if len(rows) == 1 {
		_, err := fmt.Fprintln(s.Out, "no timers are active")
		return err
	}
	return s.columns(rows)
}

// printTrigger shows what a timer, path or socket starts, and when.
func (s *session) printTrigger(g hostapi.Group, now time.Time) {
	t := g.Status.Trigger
	if t == nil {
		return
	}
	if t.Reason != "" {
		s.field("Reason", "%s", t.Reason)
	}
	if !t.Next.IsZero() {
		s.field("Trigger", "%s; %s", moment(t.Next), until(now, t.Next))
	}
	if !t.Last.IsZero() {
		s.field("Last", "%s; %s", moment(t.Last), ago(now, t.Last))
	}
	s.field("Triggers", "%s", g.Spec.Triggers())
}
