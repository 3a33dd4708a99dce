package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
	"legion.dev/legion/internal/unitlink"
)

// fileFlags are those of the verbs that work on unit files; the names are
// systemctl's.
type fileFlags struct {
	root       string
	units      []string
	now        bool
	runtime    bool
	force      bool
	quiet      bool
	noReload   bool
	noWarn     bool
	full       bool
	presetMode string
}

func (f *fileFlags) add(set *pflag.FlagSet) {
	set.StringVar(&f.root, "root", "", "work on the files below this directory; no legiond is asked")
	set.StringArrayVar(&f.units, "units", nil, "directory of unit files, as legiond has it; may be given several times (legiond's own, else the distribution's)")
	set.BoolVar(&f.now, "now", false, "also start or stop the units")
	set.BoolVar(&f.runtime, "runtime", false, "until the next boot only")
	set.BoolVar(&f.noReload, "no-reload", false, "do not have legiond read its files again")
	set.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but errors")
}

// systemPaths are the directories of units of a distribution.
var systemPaths = []string{
	"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
}

// tree is the unit path that the verbs work on: the one given, the one of the
// legiond that is asked, else the distribution's.
func (s *session) tree(ctx context.Context, f *fileFlags) *unitlink.Tree {
	t := &unitlink.Tree{Root: f.root, Paths: f.units, Options: unitdir.ThisMachine()}
	if len(t.Paths) == 0 && f.root == "" {
		c := s.client()
		if info, err := c.Info(ctx); err == nil {
			t.Paths = info.UnitPath
		}
		c.Close()
	}
	if len(t.Paths) == 0 {
		t.Paths = systemPaths
	}
	t.Paths = slices.Clone(t.Paths)
	for i, p := range t.Paths {
		if abs, err := filepath.Abs(p); err == nil {
			t.Paths[i] = abs
		}
	}
	t.Config, t.Runtime = unitdir.Config(t.Paths)
	t.Paths = unitdir.WithControl(t.Paths)
	return t
}

// mangled gives the names of units that a person meant.
func mangled(args []string) ([]string, error) {
	out := make([]string, len(args))
	for i, a := range args {
		name, err := unitfile.Mangle(a, true)
		if err != nil {
			return nil, &Exit{exitFailure, err}
		}
		out[i] = name
	}
	return out, nil
}

// failedTo is systemctl's form of an error.
func failedTo(what string, err error) error {
	text := strings.TrimSuffix(err.Error(), ".")
	for _, word := range []string{"unit file ", "file "} {
		if rest, ok := strings.CutPrefix(text, word); ok {
			text = strings.ToUpper(word[:1]) + word[1:] + rest
		}
	}
	return &Exit{exitFailure, fmt.Errorf("Failed to %s: %s.", what, text)} //lint:ignore ST1005 the words are systemctl's
}

// unitFileVerb carries out enable, disable, reenable, mask, unmask, preset,
// preset-all, link and revert.
func (s *session) unitFileVerb(ctx context.Context, verb string, args []string, f *fileFlags) error {
	t := s.tree(ctx, f)
	files, names := splitPaths(args)
	names, err := mangled(names)
	if err != nil {
		return err
	}
	if names, err = s.initScripts(t, verb, names, f); err != nil {
		return err
	}
	changes, err := s.changeFiles(t, verb, files, names, f)
	if !f.quiet {
		for _, c := range changes {
			fmt.Fprintln(s.Err, c)
		}
	}
	if err != nil {
		what := map[string]string{"preset-all": "preset all units"}[verb]
		if what == "" {
			what = verb + " unit"
		}
		return failedTo(what, err)
	}
	if f.root != "" {
		return nil
	}
	return s.follow(ctx, verb, append(names, bases(files)...), f, len(changes) > 0)
}

// splitPaths takes the paths of unit files from among the names.
func splitPaths(args []string) (files, names []string) {
	for _, a := range args {
		if strings.HasPrefix(a, "/") && unitfile.ValidName(filepath.Base(a), unitfile.AnyName) {
			files = append(files, a)
		} else {
			names = append(names, a)
		}
	}
	return files, names
}

func bases(files []string) []string {
	var out []string
	for _, f := range files {
		out = append(out, filepath.Base(f))
	}
	return out
}

func (s *session) changeFiles(t *unitlink.Tree, verb string, files, names []string, f *fileFlags) ([]unitlink.Change, error) {
	how := unitlink.How{Runtime: f.runtime, Force: f.force}
	var changes []unitlink.Change
	if verb == "enable" || verb == "link" || verb == "reenable" || verb == "preset" {
		for _, file := range files {
			c, err := t.Link(file, how)
			changes = append(changes, c...)
			if err != nil {
				return changes, err
			}
		}
	}
	names = append(slices.Clone(names), bases(files)...)
	if len(names) == 0 && verb != "preset-all" {
		return changes, nil
	}
	more, err := s.changeNames(t, verb, names, f, how)
	return append(changes, more...), err
}

func (s *session) changeNames(t *unitlink.Tree, verb string, names []string, f *fileFlags, how unitlink.How) ([]unitlink.Change, error) {
	switch verb {
	case "enable", "reenable":
		var removed []unitlink.Change
		if verb == "reenable" {
			var err error
			if removed, err = t.Disable(names, how); err != nil {
				return removed, err
			}
		}
		made, none, err := t.Enable(names, how)
		if err == nil && len(none) > 0 && len(made) == 0 && !f.quiet && !f.noWarn {
			fmt.Fprintf(s.Err, "%s: the [Install] section asks for no link (WantedBy=, RequiredBy=, Also=, Alias=), so there is nothing to enable.\n"+
				"Such a unit is started by a unit that wants it, by a socket, a timer or a path, or by hand.\n", strings.Join(none, ", "))
		}
		return append(removed, made...), err
	case "disable":
		return t.Disable(names, how)
	case "mask":
		changes, missing, err := t.Mask(names, how)
		for _, m := range missing {
			if !f.quiet {
				fmt.Fprintf(s.Err, "Unit %s does not exist, proceeding anyway.\n", m)
			}
		}
		return changes, err
	case "unmask":
		return t.Unmask(names, how)
	case "revert":
		return t.Revert(names)
	case "preset":
		return t.Preset(names, unitlink.Mode(f.presetMode), how)
	case "preset-all":
		var all []string
		for _, l := range t.List() {
			if slices.Contains([]unitlink.State{unitlink.Enabled, unitlink.Disabled, unitlink.Indirect}, l.State) {
				all = append(all, l.Name)
			}
		}
		return t.Preset(all, unitlink.Mode(f.presetMode), how)
	}
	return nil, nil // link is done
}

// follow has legiond take note of what has changed, where there is one.
func (s *session) follow(ctx context.Context, verb string, names []string, f *fileFlags, changed bool) error {
	if f.noReload && !f.now {
		return nil
	}
	c := s.client()
	defer c.Close()
	if changed && !f.noReload {
		if _, err := c.Reload(ctx); err != nil && (f.now || !unreachable(err)) {
			return explained(err)
		}
	}
	if !f.now || len(names) == 0 {
		return nil
	}
	job := map[string]string{"enable": "start", "reenable": "start", "disable": "stop", "mask": "stop"}[verb]
	if job == "" {
		return nil
	}
	groups, err := s.find(ctx, c, names)
	if err != nil {
		if job == "stop" {
			return nil // what is not there does not run
		}
		return explained(err)
	}
	return s.quietly(f.quiet).do(ctx, c, job, groups, true)
}

// initScripts has update-rc.d(8) do what is asked of those names that have no
// unit file but a script in /etc/init.d, and gives the others.
func (s *session) initScripts(t *unitlink.Tree, verb string, names []string, f *fileFlags) ([]string, error) {
	if verb != "enable" && verb != "disable" && verb != "reenable" {
		return names, nil
	}
	var left []string
	for _, name := range names {
		script := strings.TrimSuffix(name, ".service")
		_, err := t.Find(name)
		if fi, serr := os.Stat(filepath.Join("/", t.Root, "etc/init.d", script)); !errors.Is(err, unitlink.ErrNotFound) || serr != nil || fi.Mode()&0o111 == 0 {
			left = append(left, name)
			continue
		}
		if !f.quiet {
			fmt.Fprintf(s.Err, "%s has no unit file but a script in /etc/init.d; update-rc.d is called to %s it.\n", name, verb)
		}
		what := verb
		if verb == "reenable" {
			what = "enable"
		}
		for _, args := range [][]string{{script, "defaults"}, {script, what}} {
			if t.Root != "" && t.Root != "/" {
				args = append([]string{t.Root, "update-rc.d"}, args...)
			} else {
				args = append([]string{"update-rc.d"}, args...)
			}
			if err := s.initTool(args); err != nil {
				return nil, failedTo(verb+" unit", fmt.Errorf("%s: %w", strings.Join(args, " "), err))
			}
		}
	}
	return left, nil
}

func (s *session) initTool(args []string) error {
	if args[0] != "update-rc.d" {
		args = append([]string{"chroot"}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	// Else update-rc.d would ask systemctl in its turn.
	cmd.Env = append(os.Environ(), "_SKIP_SYSTEMD_NATIVE=1")
	cmd.Stdout, cmd.Stderr = s.Err, s.Err
	return cmd.Run()
}

func enableCommand(s *session) *cobra.Command {
	return s.fileCommand("enable", "Have units started at boot: make the links that [Install] asks for")
}

func disableCommand(s *session) *cobra.Command {
	return s.fileCommand("disable", "Have units not started at boot any more: remove those links")
}

func reenableCommand(s *session) *cobra.Command {
	return s.fileCommand("reenable", "Remove the links of units and make them anew")
}

func maskCommand(s *session) *cobra.Command {
	return s.fileCommand("mask", "Make units impossible to start, by whomever")
}

func unmaskCommand(s *session) *cobra.Command {
	return s.fileCommand("unmask", "Undo mask")
}

func presetCommand(s *session) *cobra.Command {
	return s.fileCommand("preset", "Enable or disable units as the distribution's policy says (systemd.preset)")
}

// fileCommand is a verb that changes links of unit files.
func (s *session) fileCommand(verb, short string) *cobra.Command {
	f := &fileFlags{}
	c := &cobra.Command{
		Use: verb + " UNIT…", Short: short, Args: atLeastOne, ValidArgsFunction: s.completeFiles(f),
		RunE: func(cmd *cobra.Command, args []string) error { return s.unitFileVerb(cmd.Context(), verb, args, f) },
	}
	f.add(c.Flags())
	c.Flags().BoolVar(&f.force, "force", false, "replace links that point elsewhere")
	if verb == "preset" {
		c.Flags().StringVar(&f.presetMode, "preset-mode", "full", "full, enable-only or disable-only")
	}
	return c
}

// completeFiles completes the names of unit files.
func (s *session) completeFiles(f *fileFlags) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, l := range s.tree(cmd.Context(), f).List() {
			if strings.HasPrefix(l.Name, typed) {
				out = append(out, l.Name+"\t"+string(l.State))
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
