package cli

import "github.com/spf13/cobra"

func planCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:                "plan [--dir DIR] ds/NAME | -f FILE",
		Short:              "Show what an update of a DaemonSet does on each node, and change nothing",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runServer(s, "plan", args)
		},
	}
}
