package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/fleet"
)

func nodesCommand(s *session) *cobra.Command {
	var dir string
	list := func(c *cobra.Command, _ []string) error {
		return withFleet(s, dir, func(f *fleet.Fleet) error { return f.ListNodes(c.Context()) })
	}
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List, add and remove the fleet's nodes on this machine",
		Args:  noArgs,
		RunE:  list,
	}
	c.PersistentFlags().StringVar(&dir, "dir", "", "the fleet's directory (default $LEGION_DIR, then /var/lib/legion for root, ~/.legion else)")
	c.AddCommand(
		&cobra.Command{Use: "list", Short: "List the local nodes", Args: noArgs, RunE: list},
		&cobra.Command{
			Use: "add NAME", Short: "Add a local node and wait until it is Ready", Args: oneName,
			RunE: func(c *cobra.Command, args []string) error {
				return withFleet(s, dir, func(f *fleet.Fleet) error { return f.AddNode(c.Context(), args[0]) })
			},
		},
		&cobra.Command{
			Use: "remove NAME", Short: "Stop a local node and its daemons, and take it out of the fleet", Args: oneName,
			RunE: func(c *cobra.Command, args []string) error {
				return withFleet(s, dir, func(f *fleet.Fleet) error { return f.RemoveNode(c.Context(), args[0]) })
			},
		},
	)
	return c
}

func oneName(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return &Exit{exitUsage, fmt.Errorf("%s takes one node's name\nsee: %[1]s --help", c.CommandPath())}
	}
	return nil
}
