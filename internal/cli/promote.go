package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"legion.dev/legion/internal/promote"
	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

func promoteCommand(s *session) *cobra.Command {
	f, o, selector := &fileFlags{}, promote.Options{User: account, Group: groupNumber}, ""
	c := &cobra.Command{
		Use:   "promote UNIT",
		Short: "Print the DaemonSet that runs a service of this host on every node",
		Long: "Print the DaemonSet that runs a service of this host on every node, for kubectl apply -f -.\n" +
			"Directives without a field of a pod go into an annotation that nodes of Legion honour; standard error lists\n" +
			"them, what becomes different, and what is left out.",
		Example: "  legion promote cron | kubectl apply -f -",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &Exit{exitUsage, fmt.Errorf("name one service: %s", cmd.UseLine())}
			}
			return nil
		},
		ValidArgsFunction: s.completeFiles(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			if selector != "" {
				key, value, ok := strings.Cut(selector, "=")
				if !ok || key == "" || value == "" {
					return &Exit{exitUsage, fmt.Errorf("--selector %q is not KEY=VALUE", selector)}
				}
				o.Label = [2]string{key, value}
			}
			return s.promote(cmd.Context(), args[0], f, o)
		},
	}
	flags := c.Flags()
	flags.StringArrayVar(&f.units, "units", nil, "directory of unit files, as legiond has it; may be given several times (legiond's own, else the distribution's)")
	flags.StringVarP(&o.Namespace, "namespace", "n", "", "the DaemonSet's namespace (that of kubectl)")
	flags.StringVar(&o.Name, "name", "", "the DaemonSet's name (the unit's, without .service)")
	flags.StringVar(&selector, "selector", "", "KEY=VALUE, the label that its pods are known by (app.kubernetes.io/name=NAME)")
	flags.StringVar(&o.Image, "image", "host", "a word for people: nodes run the host's own program")
	return c
}

func (s *session) promote(ctx context.Context, arg string, f *fileFlags, o promote.Options) error {
	if s.output != "" && s.output != "yaml" && s.output != "json" {
		return &Exit{exitUsage, fmt.Errorf("unknown output format %q: yaml or json", s.output)}
	}
	u, err := s.promoted(ctx, arg, f)
	if err != nil {
		return err
	}
	r, err := promote.DaemonSet(u, o)
	if err != nil {
		return &Exit{exitFailure, err}
	}
	for _, part := range []struct {
		title string
		lines []string
	}{{"in the annotation:", r.Carried}, {"becomes different:", r.Changed}, {"left out:", r.LeftOut}} {
		for _, line := range part.lines {
			fmt.Fprintln(s.Err, s.paint(yellow, part.title), line)
		}
	}
	if s.output == "json" {
		e := json.NewEncoder(s.Out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(r.Object)
	}
	e := yaml.NewEncoder(s.Out)
	e.SetIndent(2)
	if err := e.Encode(r.Object); err != nil {
		return err
	}
	return e.Close()
}

// promoted finds the unit and its files.
func (s *session) promoted(ctx context.Context, arg string, f *fileFlags) (promote.Unit, error) {
	names, err := mangled([]string{arg})
	if err != nil {
		return promote.Unit{}, err
	}
	name := names[0]
	switch _, _, suffix, kind := unitfile.ParseName(name); {
	case kind == unitfile.Template:
		return promote.Unit{}, &Exit{exitFailure, fmt.Errorf("%s is a template: name one of its instances, such as %s", name, strings.Replace(name, "@", "@NAME", 1))}
	case suffix != ".service":
		return promote.Unit{}, &Exit{exitFailure, fmt.Errorf("%s is no service: only a service becomes a DaemonSet; name the one that it starts", name)}
	}
	// The directories are those of a fleet's hosts, where root runs legiond.
	opts := unitdir.ThisMachine()
	opts.Root, opts.UID, opts.GID = true, 0, 0
	for _, field := range []*string{&opts.RuntimeDir, &opts.StateDir, &opts.CacheDir, &opts.LogsDir, &opts.ConfigDir, &opts.User, &opts.Group, &opts.Home, &opts.Shell} {
		*field = ""
	}
	u := promote.Unit{}
	if u.Group, err = unitdir.Find(s.tree(ctx, f).Paths, name, unitdir.Options{Options: opts}); err != nil {
		return u, &Exit{exitNoSuchUnit, fmt.Errorf("cannot promote %s: %w", name, err)}
	}
	for _, path := range u.Group.Source.Files {
		text, err := os.ReadFile(path)
		if err != nil {
			return u, failedTo("promote "+name, err)
		}
		file, err := unitfile.Parse(path, text)
		if err != nil {
			return u, failedTo("promote "+name, err)
		}
		u.Files = append(u.Files, file)
	}
	return u, nil
}

// account looks a user up, by name or number.
func account(name string) (promote.Account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return promote.Account{}, errors.New("this host has no such user")
		}
	}
	a := promote.Account{Name: u.Username, Home: u.HomeDir}
	ids, err := u.GroupIds()
	if err != nil {
		return a, fmt.Errorf("cannot read the user's groups: %w", err)
	}
	if a.UID, err = strconv.ParseInt(u.Uid, 10, 64); err != nil {
		return a, err
	}
	if a.GID, err = strconv.ParseInt(u.Gid, 10, 64); err != nil {
		return a, err
	}
	for _, id := range ids {
		n, err := strconv.ParseInt(id, 10, 64)
		if err != nil {
			return a, err
		}
		if n != a.GID {
			a.Groups = append(a.Groups, n)
		}
	}
	slices.Sort(a.Groups)
	return a, nil
}

func groupNumber(name string) (int64, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		if g, err = user.LookupGroupId(name); err != nil {
			return 0, errors.New("this host has no such group")
		}
	}
	return strconv.ParseInt(g.Gid, 10, 64)
}
