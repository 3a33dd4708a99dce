package cli

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/unitfile"
)

func (c *systemctl) list(ctx context.Context, client *hostclient.Client, verb string) error {
	groups, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	switch verb {
	case "list-units":
		return c.listUnits(groups)
	case "list-dependencies":
		return c.listDependencies(groups)
	case "list-jobs":
		return c.listJobs(groups)
	case "list-timers":
		return c.listTimers(groups, time.Now())
	case "list-sockets":
		return c.listSockets(groups)
	case "list-paths":
		c.types = []string{"path"}
		return c.listUnits(groups)
	}
	return nil
}

// unitLine is one line of list-units; the names are those of its JSON.
type unitLine struct {
	Unit        string `json:"unit"`
	Load        string `json:"load"`
	Active      string `json:"active"`
	Sub         string `json:"sub"`
	Description string `json:"description"`
}

func (c *systemctl) listUnits(groups []hostapi.Group) error {
	patterns, err := mangled(c.args)
	if err != nil {
		return err
	}
	lines := []unitLine{}
	for _, g := range groups {
		l := unitLine{g.Spec.Name, "loaded", g.ActiveState, g.SubState, g.Spec.Description}
		if l.Description == "" {
			l.Description = l.Unit
		}
		shown := c.show.all || len(c.states) > 0 || len(patterns) > 0 || g.ActiveState != "inactive"
		inState := len(c.states) == 0 || slices.Contains(c.states, l.Active) || slices.Contains(c.states, l.Sub) || slices.Contains(c.states, l.Load)
		if shown && inState && matches(l.Unit, patterns) && ofType(l.Unit, c.types) {
			lines = append(lines, l)
		}
	}
	sort.Slice(lines, func(i, j int) bool { return lines[i].Unit < lines[j].Unit })
	if asJSON, err := c.json(); err != nil {
		return err
	} else if asJSON {
		return c.printJSON(lines)
	}
	c.printUnits(lines)
	return nil
}

func (c *systemctl) printUnits(lines []unitLine) {
	head := unitLine{"UNIT", "LOAD", "ACTIVE", "SUB", "DESCRIPTION"}
	widths := [4]int{}
	for _, l := range append([]unitLine{head}, lines...) {
		if c.noLegend && l == head {
			continue
		}
		for i, cell := range []string{l.Unit, l.Load, l.Active, l.Sub} {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	row := func(mark string, l unitLine) {
		if c.plain {
			mark = ""
		} else {
			mark += " "
		}
		fmt.Fprintf(c.Out, "%s%-*s %-*s %-*s %-*s %s\n", mark, widths[0], l.Unit, widths[1], l.Load, widths[2], l.Active, widths[3], l.Sub, l.Description)
	}
	if len(lines) > 0 && !c.noLegend {
		row(" ", head)
	}
	for _, l := range lines {
		mark := " "
		if l.Active == "failed" {
			mark = c.paint(red, "●")
		}
		row(mark, l)
	}
	if c.noLegend {
		return
	}
	if len(lines) > 0 {
		fmt.Fprint(c.Out, "\nLOAD   = Whether the unit file was read.\nACTIVE = Whether the unit is up.\nSUB    = The same in more detail, which depends on the type of unit.\n")
	}
	fmt.Fprintf(c.Out, "%d loaded units listed.", len(lines))
	if !c.show.all {
		fmt.Fprint(c.Out, " Pass --all to see loaded but inactive units, too.")
	}
	fmt.Fprintln(c.Out, "\nTo show all installed unit files use 'systemctl list-unit-files'.")
}

func (c *systemctl) status(ctx context.Context, client *hostclient.Client) error {
	if len(c.args) == 0 {
		return c.hostStatus(ctx, client)
	}
	groups, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	if asJSON, err := c.json(); err != nil {
		return err
	} else if asJSON {
		return c.unitStatus(ctx, client, c.args, c.lines)
	}
	t := c.tree(ctx, &c.file)
	code := exitOK
	first := true
	for _, a := range c.args {
		found := c.meant(ctx, client, groups, a)
		if len(found) == 0 && !strings.ContainsAny(a, "*?[") {
			name, _ := unitfile.Mangle(a, false)
			if u, err := t.Find(name); err == nil && u.Masked != "" {
				fmt.Fprintf(c.Out, "○ %s\n     Loaded: masked (Reason: Unit %s is masked.)\n     Active: inactive (dead)\n", name, name)
				code = max(code, exitNotRunning)
				continue
			}
			fmt.Fprintf(c.Err, "Unit %s could not be found.\n", name)
			code = exitNoSuchUnit
			continue
		}
		for _, g := range found {
			if !first {
				fmt.Fprintln(c.Out)
			}
			first = false
			p := unitProperties(t, &g, g.Spec.Name)
			c.printStatus(g, p)
			c.printTail(ctx, client, g, c.lines)
			if g.ActiveState != "active" && g.ActiveState != "reloading" {
				code = max(code, exitNotRunning)
			}
		}
	}
	if code != exitOK {
		return &Exit{Status: code}
	}
	return nil
}

// printStatus has the lines of systemctl status.
func (c *systemctl) printStatus(g hostapi.Group, properties []property) {
	get := func(name string) string {
		for _, p := range properties {
			if p.name == name {
				return p.value
			}
		}
		return ""
	}
	line := func(label, format string, args ...any) {
		fmt.Fprintf(c.Out, "%11s: %s\n", label, fmt.Sprintf(format, args...))
	}
	head := c.dot(g.ActiveState) + " " + g.Spec.Name
	if d := g.Spec.Description; d != "" {
		head += " - " + d
	}
	fmt.Fprintln(c.Out, head)
	file := orElse(get("FragmentPath"), get("SourcePath"))
	loaded := get("LoadState")
	if file != "" {
		loaded += " (" + file
		if state := get("UnitFileState"); state != "" {
			loaded += "; " + state + "; preset: " + get("UnitFilePreset")
		}
		loaded += ")"
	}
	line("Loaded", "%s", loaded)
	if d := get("DropInPaths"); d != "" {
		line("Drop-In", "%s", d)
	}
	active := g.ActiveState + " (" + g.SubState + ")"
	if r := get("Result"); g.ActiveState == "failed" && r != "" {
		active = g.ActiveState + " (Result: " + r + ")"
	}
	active = c.paint(colourOf(g.ActiveState), active)
	if t := since(g); !t.IsZero() {
		active += " since " + moment(t) + "; " + ago(time.Now(), t)
	}
	line("Active", "%s", active)
	for _, st := range g.Status.Services {
		if st.Main != nil && st.Main.Exit == nil && st.Main.PID > 0 {
			line("Main PID", "%d (%s)", st.Main.PID, command(st.Main.PID))
		}
		if last := lastRun(st); last != nil && last.Exit != nil && (st.Main == nil || st.Main.Exit != nil) {
			line("Process", "%d %s", last.PID, ended(last.Exit))
		}
		if st.Text != "" {
			line("Status", "%q", st.Text)
		}
		if u := usageOf(st); u.tasks > 0 {
			line("Tasks", "%d", u.tasks)
			line("Memory", "%s", bytesText(u.memory))
			line("CPU", "%s", u.cpu.Round(time.Millisecond))
		}
		if st.Cgroup != "" && st.State.Alive() {
			c.printTree(st)
		}
	}
}
