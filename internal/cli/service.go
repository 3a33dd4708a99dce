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
)

// runService is service(8): systemctl with the words in the other order, and
// the init.d script itself for what systemctl does not know.
func runService(s *session, ctx context.Context, args []string) error {
	usage := "service NAME COMMAND [ARG…] | service --status-all"
	switch {
	case len(args) == 1 && args[0] == "--status-all":
		return s.statusAll(ctx)
	case len(args) > 0 && (args[0] == "-h" || args[0] == "--help"):
		_, err := fmt.Fprintln(s.Out, "Usage: "+usage)
		return err
	case len(args) > 0 && (args[0] == "-V" || args[0] == "--version"):
		_, err := fmt.Fprintln(s.Out, "service (legion) "+s.Version)
		return err
	case len(args) == 2 && args[1] == "--full-restart":
		if err := s.serviceVerb(ctx, args[0], "stop"); err != nil {
			return err
		}
		return s.serviceVerb(ctx, args[0], "start")
	case len(args) < 2:
		return &Exit{exitFailure, errors.New("Usage: " + usage)}
	}
	if slices.Contains([]string{"start", "stop", "restart", "status", "try-restart", "reload", "force-reload", "reload-or-restart", "force-stop"}, args[1]) {
		return s.serviceVerb(ctx, args[0], args[1])
	}
	script := filepath.Join("/etc/init.d", filepath.Base(args[0]))
	cmd := exec.CommandContext(ctx, script, args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Dir = s.In, s.Out, s.Err, "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TERM=" + os.Getenv("TERM"), "LANG=" + os.Getenv("LANG")}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &Exit{Status: exit.ExitCode()}
	}
	if err != nil {
		return &Exit{exitFailure, fmt.Errorf("%s: unrecognized service, or %s is not a command of systemctl's", args[0], args[1])}
	}
	return nil
}

func (s *session) serviceVerb(ctx context.Context, name, verb string) error {
	unit := strings.TrimSuffix(strings.TrimSuffix(name, ".sh"), ".service") + ".service"
	if verb == "force-stop" {
		return runSystemctl(s, ctx, []string{"--signal=KILL", "kill", unit})
	}
	return runSystemctl(s, ctx, []string{verb, unit})
}

// statusAll lists the services: + is active, - is not.
func (s *session) statusAll(ctx context.Context) error {
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	if err != nil {
		return explained(err)
	}
	for _, g := range groups {
		name, ok := strings.CutSuffix(g.Spec.Name, ".service")
		if !ok {
			continue
		}
		mark := "-"
		if g.ActiveState == "active" || g.ActiveState == "reloading" {
			mark = "+"
		}
		fmt.Fprintf(s.Out, " [ %s ]  %s\n", mark, name)
	}
	return nil
}
