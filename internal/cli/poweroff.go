package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func poweroffCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "poweroff",
		Short: "Stop everything that legiond runs, in reverse order, and then legiond; the machine stays on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := s.client()
			defer c.Close()
			res, err := c.Poweroff(cmd.Context())
			if err != nil {
				return explained(err)
			}
			_, err = fmt.Fprintln(s.Out, res.Message)
			return err
		},
	}
}
