package cli

import "github.com/spf13/cobra"

func tokenCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:                "token [--dir DIR] create",
		Short:              "Make the line by which a host joins the fleet",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runServer(s, "token", args)
		},
	}
}
