package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func daemonReloadCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon-reload",
		Short: "Have legiond read the unit files again; nothing is started or stopped by it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := s.json()
			if err != nil {
				return err
			}
			c := s.client()
			defer c.Close()
			res, err := c.Reload(cmd.Context())
			if err != nil {
				return explained(err)
			}
			if asJSON {
				return s.printJSON(res)
			}
			for _, part := range []struct {
				what  string
				names []string
			}{{"added", res.Added}, {"changed", res.Changed}, {"removed", res.Removed}} {
				if len(part.names) > 0 {
					fmt.Fprintf(s.Out, "%s: %s\n", part.what, strings.Join(part.names, ", "))
				}
			}
			for _, w := range res.Errors {
				fmt.Fprintf(s.Err, "legion: %s\n", place(w))
			}
			return nil
		},
	}
}
