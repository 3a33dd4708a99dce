package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
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

// power ends legiond, and the machine or container whose process 1 it is. A
// poweroff is done also where it is not: all that legiond runs is stopped.
func (c *systemctl) power(ctx context.Context, client *hostclient.Client, verb string) error {
	if verb == "kexec" {
		return &Exit{exitFailure, errors.New("systemctl: kexec is not supported by legion")}
	}
	if verb == "poweroff" && c.forced == 0 {
		_, err := client.Poweroff(ctx)
		return err
	}
	status := 0
	if verb == "exit" && len(c.args) > 0 {
		var err error
		if status, err = strconv.Atoi(c.args[0]); err != nil || status < 0 || status > 255 {
			return &Exit{exitFailure, errors.New("Invalid exit code.")} //lint:ignore ST1005 systemctl's words
		}
	}
	action := verb + [...]string{"", "-force", "-immediate"}[min(c.forced, 2)]
	if verb == "exit" {
		action = verb + [...]string{"", "-force"}[min(c.forced, 1)]
	}
	_, err := client.End(ctx, service.Action(action), status, c.reboot)
	return err
}
