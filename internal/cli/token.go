package cli

import "github.com/spf13/cobra"

func tokenCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:                "token [--dir DIR] create|list|delete",
		Short:              "Make and list the tokens by which nodes join the fleet",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runServer(s, "token", args)
		},
	}
}
