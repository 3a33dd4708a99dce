package cli

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/unitfile"
)

func listDependenciesCommand(s *session) *cobra.Command {
	var b branches
	c := &cobra.Command{
		Use: "list-dependencies [UNIT…]", Short: "Show as a tree what units require and want (default.target)", ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := s.client()
			defer c.Close()
			groups, err := c.Groups(cmd.Context())
			if err != nil {
				return explained(err)
			}
			if len(args) == 0 {
				args = []string{"default.target"}
			}
			return s.dependencyTrees(groups, args, b)
		},
	}
	c.Flags().BoolVar(&b.plain, "plain", false, "a list without lines")
	c.Flags().BoolVarP(&b.all, "all", "a", false, "what every unit brings with it, not only targets")
	c.Flags().BoolVar(&b.reverse, "reverse", false, "the units that bring the given ones with them")
	c.Flags().BoolVar(&b.before, "before", false, "the units ordered after the given ones")
	c.Flags().BoolVar(&b.after, "after", false, "the units ordered before the given ones")
	return c
}

// branches says which dependencies a tree shows, and how.
type branches struct{ plain, all, reverse, before, after bool }

func (c *systemctl) listDependencies(groups []hostapi.Group) error {
	args := c.args
	if len(args) == 0 {
		args = []string{"default.target"}
	}
	c.deps.plain, c.deps.all = c.plain, c.show.all
	return c.dependencyTrees(groups, args, c.deps)
}

// below names by its own name the units that one has below it in the tree.
func (b branches) below(groups []hostapi.Group) map[string][]string {
	own := map[string]string{}
	for _, g := range groups {
		for _, alias := range g.Spec.Deps.Aliases {
			own[alias] = g.Spec.Name
		}
	}
	out := map[string][]string{}
	add := func(above string, below ...string) {
		for _, name := range below {
			at, one := orElse(own[above], above), orElse(own[name], name)
			if b.reverse || b.before {
				at, one = one, at
			}
			out[at] = append(out[at], one)
		}
	}
	for _, g := range groups {
		d := g.Spec.Deps
		if !b.before && !b.after {
			add(g.Spec.Name, slices.Concat(d.Requires, d.Requisite, d.BindsTo, d.Wants)...)
			continue
		}
		add(g.Spec.Name, d.After...)
		for _, later := range d.Before {
			add(later, g.Spec.Name)
		}
	}
	for name := range out {
		sort.Strings(out[name])
		out[name] = slices.Compact(out[name])
	}
	return out
}

func (s *session) dependencyTrees(groups []hostapi.Group, args []string, b branches) error {
	states := map[string]string{}
	for _, g := range groups {
		states[g.Spec.Name] = g.ActiveState
	}
	names, err := mangled(args)
	if err != nil {
		return err
	}
	below := b.below(groups)
	for _, name := range names {
		for _, g := range groups {
			if slices.Contains(g.Spec.Deps.Aliases, name) {
				name = g.Spec.Name
			}
		}
		fmt.Fprintln(s.Out, name)
		s.branch(states, below, name, "", []string{name}, b)
	}
	return nil
}

// branch prints what is below one unit; a unit is not followed again below
// itself.
func (s *session) branch(states map[string]string, below map[string][]string, name, indent string, above []string, b branches) {
	for i, child := range below[name] {
		edge, further := "├─", "│ "
		if i == len(below[name])-1 {
			edge, further = "└─", "  "
		}
		if b.plain {
			edge, further = "  ", "  "
		}
		fmt.Fprintf(s.Out, "%s %s%s%s\n", s.dot(orElse(states[child], "inactive")), indent, edge, child)
		// A target brings units with it; others are shown by themselves.
		if !slices.Contains(above, child) && (b.all || strings.HasSuffix(child, ".target")) {
			s.branch(states, below, child, indent+further, append(slices.Clone(above), child), b)
		}
	}
}

func killCommand(s *session) *cobra.Command {
	signal, whom := "TERM", "all"
	c := &cobra.Command{
		Use: "kill UNIT…", Short: "Send a signal to the processes of units; what is wanted of them does not change", Args: atLeastOne, ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := unitfile.ParseSignal(signal)
			if err != nil {
				return &Exit{exitUsage, fmt.Errorf("--signal: %w", err)}
			}
			c := s.client()
			defer c.Close()
			groups, err := s.find(cmd.Context(), c, args)
			if err != nil {
				return explained(err)
			}
			for _, g := range groups {
				if err := c.Kill(cmd.Context(), g.Spec.Name, whom, number); err != nil {
					return explained(err)
				}
			}
			return nil
		},
	}
	c.Flags().StringVarP(&signal, "signal", "s", signal, "the signal, by name or number")
	c.Flags().StringVar(&whom, "kill-whom", whom, "main, control or all")
	return c
}
