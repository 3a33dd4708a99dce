package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"legion.dev/legion/internal/fleet"
)

func upCommand(s *session) *cobra.Command {
	var dir string
	var o fleet.UpOptions
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a fleet on this machine: a control plane and local nodes",
		Long: `Start a fleet on this machine: one control plane and N local nodes, each with a
legiond and an agent of its own, all supervised by one legiond. Returns when all
is ready. Called again it starts what is missing and changes nothing else.

As root each node has a network of its own; as an ordinary user the nodes share
this machine's network and have addresses 127.77.0.x.`,
		Example: "  legion up --dir /var/lib/legion --nodes 3 --apply examples/",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withFleet(s, dir, func(f *fleet.Fleet) error {
				if err := f.Up(c.Context(), o); err != nil {
					return err
				}
				f.Progress.Say("The fleet is up (%s).\n", f.Progress.Elapsed())
				return f.Summary(c.Context())
			})
		},
	}
	dirFlag(c, &dir)
	f := c.Flags()
	f.IntVar(&o.Nodes, "nodes", 1, "how many local nodes there shall be at least; 0 is a control plane alone")
	f.IntVar(&o.Port, "port", 0, "port of the API on 127.0.0.1 (default the one it had, then 6443, then a free one)")
	f.StringArrayVar(&o.Apply, "apply", nil, "manifest, or directory of manifests, to apply when the server is ready (repeatable)")
	f.DurationVar(&o.Timeout, "timeout", 2*time.Minute, "the longest wait for each stage")
	return c
}

// noArgs refuses arguments and shows where to look.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &Exit{exitUsage, fmt.Errorf("%s takes no argument, and got %q\nsee: %[1]s --help", c.CommandPath(), args[0])}
	}
	return nil
}

func dirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "", "the fleet's directory (default $LEGION_DIR, then /var/lib/legion for root, ~/.legion else)")
}

// withFleet runs a verb on the fleet of a directory.
func withFleet(s *session, dir string, do func(*fleet.Fleet) error) error {
	dir, err := fleetDir(s, dir)
	if err != nil {
		return err
	}
	bin, err := binDir()
	if err != nil {
		return err
	}
	f := &fleet.Fleet{
		Dir: dir, Bin: bin, Root: s.Root, Out: s.Out,
		Progress: fleet.NewProgress(s.Err, isTerminal(s.Err)),
	}
	defer f.Progress.Close()
	return do(f)
}

// fleetDir is the absolute path of the fleet's directory. Links are followed,
// so that one fleet has one name.
func fleetDir(s *session, dir string) (string, error) {
	if dir == "" {
		dir = s.Getenv("LEGION_DIR")
	}
	switch {
	case dir != "":
	case s.Root:
		dir = "/var/lib/legion"
	case s.Getenv("HOME") != "":
		dir = filepath.Join(s.Getenv("HOME"), ".legion")
	default:
		return "", fmt.Errorf("no directory for the fleet: HOME is not set; name one with --dir")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("no directory for the fleet: %w", err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}

// binDir is where this program is, and the others with it.
func binDir() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("cannot find the programs beside legion: %w", err)
	}
	return filepath.Dir(self), nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}
