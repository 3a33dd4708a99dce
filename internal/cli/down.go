package cli

import (
	"github.com/spf13/cobra"

	"legion.dev/legion/internal/fleet"
)

func downCommand(s *session) *cobra.Command {
	var dir string
	var purge bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop the fleet on this machine",
		Long: `Stop the fleet on this machine: the daemons of all nodes, the nodes and the
control plane. No process, mount, network or cgroup of it is left. Its data stay,
and "legion up" goes on with them; --purge removes them, too.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withFleet(s, dir, func(f *fleet.Fleet) error { return f.Down(c.Context(), purge) })
		},
	}
	dirFlag(c, &dir)
	c.Flags().BoolVar(&purge, "purge", false, "also remove the fleet's data")
	return c
}
