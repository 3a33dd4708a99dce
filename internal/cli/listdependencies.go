package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/unitfile"
)

func listDependenciesCommand(s *session) *cobra.Command {
	var plain bool
	c := &cobra.Command{
		Use: "list-dependencies [UNIT…]", Short: "Show as a tree what units require and want (default.target)", ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := s.client()
			defer c.Close()
			groups, err := c.Groups(cmd.Context())
			if err != nil {
				return explained(err)
			}
			if len(args) == 0 {
				args = []string{"default.target"}
			}
			return s.dependencyTrees(groups, args, plain)
		},
	}
	c.Flags().BoolVar(&plain, "plain", false, "a list without lines")
	return c
}

func killCommand(s *session) *cobra.Command {
	signal, whom := "TERM", "all"
	c := &cobra.Command{
		Use: "kill UNIT…", Short: "Send a signal to the processes of units; what is wanted of them does not change", Args: atLeastOne, ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := unitfile.ParseSignal(signal)
			if err != nil {
				return &Exit{exitUsage, fmt.Errorf("--signal: %w", err)}
			}
			c := s.client()
			defer c.Close()
			groups, err := s.find(cmd.Context(), c, args)
			if err != nil {
				return explained(err)
			}
			for _, g := range groups {
				if err := c.Kill(cmd.Context(), g.Spec.Name, whom, number); err != nil {
					return explained(err)
				}
			}
			return nil
		},
	}
	c.Flags().StringVarP(&signal, "signal", "s", signal, "the signal, by name or number")
	c.Flags().StringVar(&whom, "kill-whom", whom, "main, control or all")
	return c
}
