package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitlink"
)

// showFlags are those of show.
type showFlags struct {
	properties []string
	value, all bool
}

func showCommand(s *session) *cobra.Command {
	var f showFlags
	c := &cobra.Command{
		Use: "show [UNIT…]", Short: "Print the properties of units, or of legiond, for programs", ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error { return s.show(cmd.Context(), args, f) },
	}
	c.Flags().StringSliceVarP(&f.properties, "property", "p", nil, "only these properties")
	c.Flags().BoolVar(&f.value, "value", false, "without their names")
	c.Flags().BoolVarP(&f.all, "all", "a", false, "also those that are empty")
	return c
}

// property is one line of show; systemd's D-Bus names.
type property struct{ name, value string }

func (s *session) show(ctx context.Context, args []string, f showFlags) error {
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	if err != nil {
		return explained(err)
	}
	if len(args) == 0 {
		return s.printProperties(s.hostProperties(ctx, c, groups), f)
	}
	t := s.tree(ctx, &fileFlags{})
	for i, a := range args {
		names, err := mangled([]string{a})
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(s.Out)
		}
		g := wanted(ctx, c, groups, a)
		if err := s.printProperties(unitProperties(t, g, names[0]), f); err != nil {
			return err
		}
	}
	return nil
}

// wanted is the group that a name means; legiond is asked for those that it
// has not read yet. nil is none.
func wanted(ctx context.Context, c *hostclient.Client, groups []hostapi.Group, name string) *hostapi.Group {
	for i, g := range groups {
		if called(g, name) {
			return &groups[i]
		}
	}
	if names, err := mangled([]string{name}); err == nil {
		if g, err := c.Group(ctx, names[0]); err == nil {
			return &g
		}
	}
	return nil
}

func (s *session) printProperties(all []property, f showFlags) error {
	print := func(p property) {
		if f.value {
			fmt.Fprintln(s.Out, p.value)
		} else {
			fmt.Fprintf(s.Out, "%s=%s\n", p.name, p.value)
		}
	}
	for _, p := range all {
		// What is asked for by name is shown even if it is empty.
		if len(f.properties) > 0 && slices.Contains(f.properties, p.name) || len(f.properties) == 0 && (f.all || p.value != "") {
			print(p)
		}
	}
	return nil
}

func (s *session) hostProperties(ctx context.Context, c *hostclient.Client, groups []hostapi.Group) []property {
	info, _ := c.Info(ctx)
	failed := 0
	for _, g := range groups {
		if g.ActiveState == "failed" {
			failed++
		}
	}
	return []property{
		{"Version", systemdVersion},
		{"Features", "legion " + s.Version},
		{"Virtualization", ""},
		{"NNames", strconv.Itoa(len(groups))},
		{"NFailedUnits", strconv.Itoa(failed)},
		{"NJobs", "0"},
		{"UserspaceTimestamp", stamp(info.StartedAt)},
		{"FinishTimestamp", stamp(info.StartedAt)},
		{"ControlGroup", ""},
		{"UnitPath", strings.Join(info.UnitPath, " ")},
		{"SystemState", systemState(groups)},
		{"DefaultTimeoutStartUSec", usec(90 * time.Second)},
		{"DefaultTimeoutStopUSec", usec(90 * time.Second)},
		{"DefaultRestartUSec", usec(100 * time.Millisecond)},
		{"DefaultStartLimitIntervalUSec", usec(10 * time.Second)},
		{"DefaultStartLimitBurst", "5"},
	}
}

func systemState(groups []hostapi.Group) string {
	for _, g := range groups {
		if g.ActiveState == "failed" {
			return "degraded"
		}
	}
	return "running"
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return calendar.FormatTime(t.Local())
}

func usec(d time.Duration) string {
	if d <= 0 {
		return "infinity"
	}
	return calendar.FormatDuration(d)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// unitProperties are those of a unit; g is nil if legiond has none.
func unitProperties(t *unitlink.Tree, g *hostapi.Group, name string) []property {
	load, state, preset := "loaded", "", ""
	if g != nil {
		name = g.Spec.Name
	}
	u, err := t.Find(name)
	if err == nil {
		if found, err := t.State(name); err == nil {
			state, preset = string(found), t.PresetOf(name)
		}
	}
	switch {
	case err == nil && u.Masked != "":
		load = "masked"
	case g == nil && err == nil:
		load = "bad-setting" // there is a file, and legiond could not read it
	case g == nil:
		load = "not-found"
	}
	if g == nil {
		g = &hostapi.Group{Spec: service.Group{Name: name, Description: name}, ActiveState: "inactive", SubState: "dead"}
	}
	out := serviceProperties(g)
	out = append(out, property{"Id", name}, property{"Names", strings.Join(append([]string{name}, g.Spec.Deps.Aliases...), " ")})
	out = append(out, dependencyProperties(g.Spec.Deps)...)
	out = append(out, triggerProperties(g)...)
	out = append(out, actionProperties(g.Spec)...)
	description := g.Spec.Description
	if description == "" {
		description = name
	}
	fragment, source, dropins := "", "", []string(nil)
	if files := g.Spec.Source.Files; len(files) > 0 {
		fragment, dropins = files[0], files[1:]
	} else if err == nil && load == "masked" {
		fragment = u.Path
	}
	if g.Spec.Source.Kind == service.FromInitd {
		fragment, source = "", fragment
	}
	entered, left := "", ""
	if g.ActiveState == "active" || g.ActiveState == "reloading" {
		entered = stamp(since(*g))
	} else {
		left = stamp(since(*g))
	}
	target := len(g.Spec.Services) == 0
	return append(
		out, property{"Description", description},
		property{"LoadState", load}, property{"ActiveState", g.ActiveState}, property{"SubState", g.SubState},
		property{"FragmentPath", fragment}, property{"SourcePath", source}, property{"DropInPaths", strings.Join(dropins, " ")},
		property{"UnitFileState", state}, property{"UnitFilePreset", preset},
		property{"StateChangeTimestamp", stamp(since(*g))}, property{"ActiveEnterTimestamp", entered}, property{"InactiveEnterTimestamp", left},
		property{"CanStart", yesNo(load == "loaded" && !g.Spec.RefuseManualStart)}, property{"CanStop", yesNo(load == "loaded" && !g.Spec.RefuseManualStop)},
		property{"CanReload", yesNo(!target && canReload(g))}, property{"CanIsolate", yesNo(g.Spec.AllowIsolate)},
		property{"RefuseManualStart", yesNo(g.Spec.RefuseManualStart)}, property{"RefuseManualStop", yesNo(g.Spec.RefuseManualStop)},
		property{"FreezerState", map[bool]string{true: "frozen", false: "running"}[g.Status.Frozen]}, property{"NeedDaemonReload", "no"}, property{"Transient", yesNo(g.Spec.Annotations[transientKey] != "")},
		property{"StartLimitIntervalUSec", usec(g.Spec.StartLimit.Interval)}, property{"StartLimitBurst", strconv.Itoa(g.Spec.StartLimit.Burst)},
	)
}

// canReload says whether a reload would do anything.
func canReload(g *hostapi.Group) bool {
	return slices.ContainsFunc(g.Spec.Services, func(s service.Service) bool { return len(s.Reload) > 0 || s.Type == service.NotifyReload })
}

func dependencyProperties(d service.Dependencies) []property {
	var out []property
	for _, p := range []struct {
		name string
		list []string
	}{
		{"Requires", d.Requires},
		{"Requisite", d.Requisite},
		{"Wants", d.Wants},
		{"BindsTo", d.BindsTo},
		{"PartOf", d.PartOf},
		{"Conflicts", d.Conflicts},
		{"Before", d.Before},
		{"After", d.After},
		{"WantedBy", d.WantedBy},
		{"RequiredBy", d.RequiredBy},
	} {
		out = append(out, property{p.name, strings.Join(p.list, " ")})
	}
	return out
}
