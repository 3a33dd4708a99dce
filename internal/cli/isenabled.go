package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/unitlink"
)

func isEnabledCommand(s *session) *cobra.Command {
	f := &fileFlags{}
	c := &cobra.Command{
		Use: "is-enabled UNIT…", Short: "Say whether units are enabled; exit status 0 if one is", Args: atLeastOne,
		ValidArgsFunction: s.completeFiles(f),
		RunE:              func(cmd *cobra.Command, args []string) error { return s.isEnabled(cmd.Context(), args, f) },
	}
	f.add(c.Flags())
	c.Flags().BoolVarP(&f.full, "full", "l", false, "also the links that make it so")
	return c
}

func (s *session) isEnabled(ctx context.Context, args []string, f *fileFlags) error {
	t := s.tree(ctx, f)
	names, err := mangled(args)
	if err != nil {
		return err
	}
	enabled := false
	for _, name := range names {
		state, err := t.State(name)
		if errors.Is(err, unitlink.ErrNotFound) {
			if state, err = scriptState(t, name); err != nil {
				return &Exit{exitFailure, fmt.Errorf("Failed to get unit file state for %s: No such file or directory", name)} //lint:ignore ST1005 the words are systemctl's
			}
		} else if err != nil {
			return failedTo("get unit file state for "+name, err)
		}
		enabled = enabled || state.OK()
		if f.quiet {
			continue
		}
		fmt.Fprintln(s.Out, state)
		if u, err := t.Find(name); f.full && err == nil {
			for _, l := range t.Targets(u) {
				fmt.Fprintln(s.Out, "  "+l)
			}
		}
	}
	if !enabled {
		return &Exit{Status: exitFailure}
	}
	return nil
}

// scriptState is the state of a script in /etc/init.d without a unit file.
func scriptState(t *unitlink.Tree, name string) (unitlink.State, error) {
	script := strings.TrimSuffix(name, ".service")
	root := filepath.Join("/", t.Root)
	if found, _ := filepath.Glob(filepath.Join(root, "etc/init.d", script)); len(found) == 0 {
		return "", unitlink.ErrNotFound
	}
	if found, _ := filepath.Glob(filepath.Join(root, "etc/rc[2-5].d/S[0-9][0-9]"+script)); len(found) > 0 {
		return unitlink.Enabled, nil
	}
	return unitlink.Disabled, nil
}

func listUnitFilesCommand(s *session) *cobra.Command {
	f := &fileFlags{}
	var types, states []string
	var noLegend bool
	c := &cobra.Command{
		Use: "list-unit-files [PATTERN…]", Short: "List the unit files and whether they are enabled",
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.listUnitFiles(cmd.Context(), args, types, states, noLegend, f)
		},
	}
	f.add(c.Flags())
	c.Flags().StringSliceVarP(&types, "type", "t", nil, "only units of these types: service, timer …")
	c.Flags().StringSliceVar(&states, "state", nil, "only those in these states: enabled, masked …")
	c.Flags().BoolVar(&noLegend, "no-legend", false, "no heading and no count")
	return c
}

func (s *session) listUnitFiles(ctx context.Context, patterns, types, states []string, noLegend bool, f *fileFlags) error {
	asJSON, err := s.json()
	if err != nil {
		return err
	}
	patterns, err = mangled(patterns)
	if err != nil {
		return err
	}
	kept := []unitlink.Listed{}
	for _, l := range s.tree(ctx, f).List() {
		if matches(l.Name, patterns) && ofType(l.Name, types) && (len(states) == 0 || slices.Contains(states, string(l.State))) {
			kept = append(kept, l)
		}
	}
	if asJSON {
		return s.printJSON(kept)
	}
	w := tabwriter.NewWriter(s.Out, 0, 0, 1, ' ', 0)
	if !noLegend {
		fmt.Fprintln(w, "UNIT FILE\tSTATE\tPRESET")
	}
	for _, l := range kept {
		preset := l.Preset
		if preset == "" {
			preset = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", l.Name, l.State, preset)
	}
	if err := w.Flush(); err != nil || noLegend {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "\n%d unit files listed.\n", len(kept))
	return err
}

// matches says whether a name is one of the patterns; all are if there is none.
func matches(name string, patterns []string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, name)
		return ok
	})
}

// ofType says whether a unit is of one of the types; all are if there is none.
func ofType(name string, types []string) bool {
	return len(types) == 0 || slices.Contains(types, strings.TrimPrefix(filepath.Ext(name), "."))
}
