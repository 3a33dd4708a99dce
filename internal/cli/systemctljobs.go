package cli

import (
	"cmp"
	"fmt"
	"slices"
	"text/tabwriter"

	"legion.dev/legion/internal/hostapi"
)

// jobLine is one line of list-jobs; the names are those of its JSON.
type jobLine struct {
	Job   uint64 `json:"job"`
	Unit  string `json:"unit"`
	Type  string `json:"type"`
	State string `json:"state"`
}

// listJobs prints what is being done, and what waits for it.
func (c *systemctl) listJobs(groups []hostapi.Group) error {
	patterns, err := mangled(c.args)
	if err != nil {
		return err
	}
	lines := []jobLine{}
	for _, g := range groups {
		if g.Job == nil || !matches(g.Spec.Name, patterns) {
			continue
		}
		state := "waiting"
		if g.Job.Running {
			state = "running"
		}
		lines = append(lines, jobLine{g.Job.ID, g.Spec.Name, g.Job.Type, state})
	}
	slices.SortFunc(lines, func(a, b jobLine) int { return cmp.Compare(a.Job, b.Job) })
	if asJSON, err := c.json(); err != nil || asJSON {
		return cmp.Or(err, c.printJSON(lines))
	}
	if len(lines) == 0 {
		if !c.noLegend {
			fmt.Fprintln(c.Out, "No jobs running.")
		}
		return nil
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 1, ' ', 0)
	if !c.noLegend {
		fmt.Fprintln(w, "JOB\tUNIT\tTYPE\tSTATE")
	}
	for _, l := range lines {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", l.Job, l.Unit, l.Type, l.State)
	}
	if err := w.Flush(); err != nil || c.noLegend {
		return err
	}
	_, err = fmt.Fprintf(c.Out, "\n%d jobs listed.\n", len(lines))
	return err
}

// socketLine is one address of list-sockets.
type socketLine struct {
	Listen    string `json:"listen"`
	Unit      string `json:"unit"`
	Activates string `json:"activates"`
}

// listSockets prints what socket units listen on.
func (c *systemctl) listSockets(groups []hostapi.Group) error {
	patterns, err := mangled(c.args)
	if err != nil {
		return err
	}
	lines := []socketLine{}
	for _, g := range groups {
		if g.Spec.Socket == nil || !c.show.all && g.ActiveState != "active" || !matches(g.Spec.Name, patterns) {
			continue
		}
		for _, l := range g.Spec.Socket.Listen {
			lines = append(lines, socketLine{l.Address, g.Spec.Name, g.Spec.Triggers()})
		}
	}
	slices.SortStableFunc(lines, func(a, b socketLine) int { return cmp.Compare(a.Listen, b.Listen) })
	if asJSON, err := c.json(); err != nil || asJSON {
		return cmp.Or(err, c.printJSON(lines))
	}
	w := tabwriter.NewWriter(c.Out, 0, 0, 1, ' ', 0)
	if !c.noLegend && len(lines) > 0 {
		fmt.Fprintln(w, "LISTEN\tUNIT\tACTIVATES")
	}
	for _, l := range lines {
		fmt.Fprintf(w, "%s\t%s\t%s\n", l.Listen, l.Unit, l.Activates)
	}
	if err := w.Flush(); err != nil || c.noLegend {
		return err
	}
	_, err = fmt.Fprintf(c.Out, "\n%d sockets listed.\nPass --all to see loaded but inactive sockets, too.\n", len(lines))
	return err
}
