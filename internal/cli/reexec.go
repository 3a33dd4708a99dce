package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func reexecCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "reexec",
		Short: "Have legiond execute its program anew, to upgrade it: its process and all that it runs stay as they are",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := s.client()
			defer c.Close()
			before, err := c.Info(cmd.Context())
			if err != nil {
				return explained(err)
			}
			if _, err := c.Reexec(cmd.Context()); err != nil {
				return explained(err)
			}
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
				// A connection may break with the old program.
				now, err := c.Info(cmd.Context())
				if err == nil && now.StartedAt.After(before.StartedAt) {
					_, err = fmt.Fprintf(s.Out, "legiond is %s now (it was %s), process %d as before.\n", now.Version, before.Version, now.PID)
					return err
				}
				select {
				case <-time.After(10 * time.Millisecond):
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				}
			}
			return fmt.Errorf("legiond was told to execute itself anew and does not answer; see its own output")
		},
	}
}
