package cli

import "github.com/spf13/cobra"

func rolloutCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:                "rollout [--dir DIR] status|pause|resume|undo|history|restart ds/NAME",
		Short:              "Follow and steer the update of a DaemonSet",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runServer(s, "rollout", args)
		},
	}
}
