package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/graph"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

func verifyCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "verify FILE…",
		Short: "Check unit files without a legiond: what is wrong, unknown, or not honoured yet",
		Long: "Check unit files, with the drop-ins beside them. Errors go to standard error.\n" +
			"Exit status: 0 all can be loaded, 1 one cannot.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &Exit{exitUsage, fmt.Errorf("name at least one file: %s", cmd.UseLine())}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return s.verify(args) },
	}
}

func (s *session) verify(files []string) error {
	var groups []service.Group
	bad := false
	o := unitdir.Options{Options: unitdir.ThisMachine()}
	for _, f := range files {
		g, err := verifyOne(f, o)
		if err != nil {
			fmt.Fprintln(s.Err, s.paint(red, "error: ")+err.Error())
			bad = true
			continue
		}
		groups = append(groups, g)
		for _, w := range append(g.Warnings, executables(g)...) {
			fmt.Fprintln(s.Out, s.paint(yellow, "warning: ")+place(w))
		}
	}
	_, circles := graph.New(groups)
	for _, w := range circles {
		fmt.Fprintln(s.Out, s.paint(yellow, "warning: ")+place(w))
	}
	if bad {
		return &Exit{Status: exitFailure}
	}
	return nil
}

func verifyOne(file string, o unitdir.Options) (service.Group, error) {
	name := filepath.Base(file)
	switch prefix, _, suffix, kind := unitfile.ParseName(name); kind {
	case 0:
		return service.Group{}, fmt.Errorf("%s: %q is not the name of a unit; it ends in .service or .target", file, name)
	case unitfile.Template:
		// An instance stands for all of them.
		name = prefix + "@instance" + suffix
	}
	if _, err := os.Stat(file); err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return service.Group{}, fmt.Errorf("%s: cannot read the unit file: %w", file, err)
	}
	return unitdir.Find([]string{filepath.Dir(file)}, name, o)
}

func executable(path string, search []string) bool {
	if len(search) == 0 || filepath.IsAbs(path) {
		search = []string{""}
	}
	return slices.ContainsFunc(search, func(dir string) bool {
		_, err := exec.LookPath(filepath.Join(dir, path))
		return err == nil
	})
}

// executables warns of commands that are not there.
func executables(g service.Group) []service.Warning {
	missing := map[string]bool{}
	for _, svc := range g.Services {
		if svc.Exec.RootDirectory != "" {
			continue // their paths are below it
		}
		for _, list := range [][]service.Command{svc.StartPre, svc.Start, svc.StartPost, svc.Reload, svc.Stop, svc.StopPost} {
			for _, c := range list {
				// A bare name is looked for where this command would find it.
				if !c.Listen && !executable(c.Path, svc.Exec.SearchPath) {
					missing[c.Path] = true
				}
			}
		}
	}
	var paths []string
	for p := range missing {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	var out []service.Warning
	for _, p := range paths {
		out = append(out, service.Warning{File: g.Source.Files[0], Text: p + " is not an executable file on this machine"})
	}
	return out
}
