package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/fleet"
	"legion.dev/legion/internal/token"
)

func joinCommand(s *session) *cobra.Command {
	var j fleet.Joining
	c := &cobra.Command{
		Use:   "join LINE",
		Short: "Make this host a node of a fleet, with the line that `legion token create` prints",
		Long: `Make this host a node of a fleet. LINE is what 'legion token create' prints where
the fleet is. The agent becomes a unit of this host's legiond, legion-agent.service,
which starts it again at each boot. Returns when the node is Ready.`,
		Example: "  legion join legion1.ab12cd.0123456789abcdef.9f…@https://fleet.example:6443",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &Exit{exitUsage, errors.New("join takes one line, which `legion token create` prints\nsee: legion join --help")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var err error
			if j.Line, err = token.ParseLine(args[0]); err != nil {
				return err
			}
			bin, err := binDir()
			if err != nil {
				return err
			}
			if j.Socket, err = filepath.Abs(s.socketPath()); err != nil {
				return err
			}
			if j.Dir == "" {
				j.Dir = filepath.Join(filepath.Dir(j.Socket), "agent")
			}
			if j.Dir, err = filepath.Abs(j.Dir); err != nil {
				return err
			}
			j.Agent = filepath.Join(bin, "legion-agent")
			j.Progress = fleet.NewProgress(s.Err, isTerminal(s.Err))
			defer j.Progress.Close()
			if err := j.Run(c.Context()); err != nil {
				return explained(err)
			}
			fmt.Fprintf(s.Out, "Node %s is Ready.\n", j.Node)
			return nil
		},
	}
	hostname, _ := os.Hostname()
	f := c.Flags()
	f.StringVar(&j.Node, "node", strings.ToLower(hostname), "name of the node")
	f.StringVar(&j.NodeIP, "node-ip", "", "address under which the node's daemons are reached (default the one that leads to the server)")
	f.StringVar(&j.Labels, "labels", "", "more labels of the node: K=V,…")
	f.StringVar(&j.Dir, "dir", "", "directory of the node's certificate (default agent, beside the socket of legiond)")
	f.DurationVar(&j.Timeout, "timeout", time.Minute, "the longest wait for the node to be Ready")
	return c
}
