package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
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

// jobs carries out the verbs of start and stop.
func (c *systemctl) jobs(ctx context.Context, client *hostclient.Client, verb string) error {
	groups, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	if verb == "isolate" {
		c.jobMode = service.JobIsolate
	}
	byJob := map[string][]hostapi.Group{}
	var failures []error
	for _, typed := range c.args {
		found := c.meant(ctx, client, groups, typed)
		if len(found) == 0 && !strings.ContainsAny(typed, "*?[") {
			failures = append(failures, c.absent(ctx, verb, typed))
			continue
		}
		for _, g := range found {
			if job := jobOf(verb, g); job != "" {
				byJob[job] = append(byJob[job], g)
			}
		}
	}
	for _, job := range []string{"stop", "reload", "restart", "start"} {
		if len(byJob[job]) == 0 {
			continue
		}
		if err := c.quietly(true).do(ctx, client, job, byJob[job], !c.noBlock); err != nil {
			failures = append(failures, err)
		}
	}
	return worst(failures)
}

// worst joins the errors; the exit status is the highest.
func worst(failures []error) error {
	if len(failures) == 0 {
		return nil
	}
	code := exitFailure
	var texts []string
	for _, err := range failures {
		var e *Exit
		if errors.As(err, &e) {
			code = max(code, e.Status)
		}
		texts = append(texts, err.Error())
	}
	return &Exit{code, errors.New(strings.Join(texts, "\n"))}
}

// meant are the groups of a name or a pattern.
func (c *systemctl) meant(ctx context.Context, client *hostclient.Client, groups []hostapi.Group, typed string) []hostapi.Group {
	if strings.ContainsAny(typed, "*?[") {
		pattern, err := unitfile.Mangle(typed, true)
		if err != nil {
			return nil
		}
		var out []hostapi.Group
		for _, g := range groups {
			if matches(g.Spec.Name, []string{pattern}) {
				out = append(out, g)
			}
		}
		return out
	}
	if g := wanted(ctx, client, groups, typed); g != nil {
		return []hostapi.Group{*g}
	}
	return nil
}

// absent is systemctl's error for a unit that is not there.
func (c *systemctl) absent(ctx context.Context, verb, typed string) error {
	name, err := unitfile.Mangle(typed, false)
	if err != nil {
		name = typed
	}
	if u, err := c.tree(ctx, &c.file).Find(name); err == nil && u.Masked != "" {
		return &Exit{exitFailure, fmt.Errorf("Failed to %s %s: Unit %s is masked.", verb, name, name)} //lint:ignore ST1005 systemctl's words
	}
	if verb == "try-restart" || verb == "condrestart" || verb == "try-reload-or-restart" || verb == "stop" {
		return &Exit{exitNotInstalled, fmt.Errorf("Failed to %s %s: Unit %s not loaded.", verb, name, name)} //lint:ignore ST1005 systemctl's words
	}
	return &Exit{exitNotInstalled, fmt.Errorf("Failed to %s %s: Unit %s not found.", verb, name, name)} //lint:ignore ST1005 systemctl's words
}

// jobOf is what legiond is asked to do for a verb; empty is nothing.
func jobOf(verb string, g hostapi.Group) string {
	active := g.ActiveState == "active" || g.ActiveState == "reloading" || g.ActiveState == "activating"
	switch verb {
	case "try-restart", "condrestart":
		if !active {
			return ""
		}
		return "restart"
	case "reload-or-restart", "force-reload":
		if active && canReload(&g) {
			return "reload"
		}
		return "restart"
	case "try-reload-or-restart", "reload-or-try-restart":
		switch {
		case !active:
			return ""
		case canReload(&g):
			return "reload"
		}
		return "restart"
	case "isolate":
		return "start"
	}
	return verb
}
