package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"legion.dev/legion/internal/hostapi"
)

// timerLine is one line of list-timers; the names and units are those of its
// JSON: microseconds since 1970, 0 for never.
type timerLine struct {
	Next      int64  `json:"next"`
	Left      int64  `json:"left"`
	Last      int64  `json:"last"`
	Passed    int64  `json:"passed"`
	Unit      string `json:"unit"`
	Activates string `json:"activates"`
}

func (c *systemctl) listTimers(groups []hostapi.Group, now time.Time) error {
	patterns, err := mangled(c.args)
	if err != nil {
		return err
	}
	asJSON, err := c.json()
	if err != nil {
		return err
	}
	lines := []timerLine{}
	w := tabwriter.NewWriter(c.Out, 0, 0, 1, ' ', 0)
	if !asJSON && !c.noLegend {
		fmt.Fprintln(w, "NEXT\tLEFT\tLAST\tPASSED\tUNIT\tACTIVATES")
	}
	for _, g := range timers(groups) {
		if !c.show.all && g.ActiveState != "active" || !matches(g.Spec.Name, patterns) {
			continue
		}
		l := timerLine{Unit: g.Spec.Name, Activates: g.Spec.Triggers()}
		next, left, last, passed := "-", "-", "-", "-"
		if t := g.Status.Trigger; t != nil {
			if !t.Next.IsZero() {
				l.Next, l.Left = t.Next.UnixMicro(), t.Next.Sub(now).Microseconds()
				next, left = moment(t.Next), strings.TrimPrefix(until(now, t.Next), "in ")+" left"
			}
			if !t.Last.IsZero() {
				l.Last, l.Passed = t.Last.UnixMicro(), now.Sub(t.Last).Microseconds()
				last, passed = moment(t.Last), ago(now, t.Last)
			}
		}
		lines = append(lines, l)
		if !asJSON {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", next, left, last, passed, l.Unit, l.Activates)
		}
	}
	if asJSON {
		return c.printJSON(lines)
	}
	if err := w.Flush(); err != nil || c.noLegend {
		return err
	}
	fmt.Fprintf(c.Out, "\n%d timers listed.\n", len(lines))
	if !c.show.all {
		fmt.Fprintln(c.Out, "Pass --all to see loaded but inactive timers, too.")
	}
	return nil
}

// triggerProperties are those of a unit that starts another.
func triggerProperties(g *hostapi.Group) []property {
	out := []property{{"Triggers", g.Spec.Triggers()}}
	if t := g.Status.Trigger; t != nil && g.Spec.Timer != nil {
		out = append(out, property{"NextElapseUSecRealtime", stamp(t.Next)}, property{"LastTriggerUSec", stamp(t.Last)})
	}
	return out
}
