package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
)

func startCommand(s *session) *cobra.Command {
	return s.jobCommand("start", "Start units and what they need; wait until they are up")
}

func stopCommand(s *session) *cobra.Command {
	return s.jobCommand("stop", "Stop units and what needs them; wait until they are down")
}

func restartCommand(s *session) *cobra.Command {
	return s.jobCommand("restart", "Stop units and start them again")
}

func reloadCommand(s *session) *cobra.Command {
	return s.jobCommand("reload", "Have units read their own configuration again (ExecReload=)")
}

// jobCommand is a verb that legiond carries out on each unit.
func (s *session) jobCommand(verb, short string) *cobra.Command {
	var noBlock bool
	c := &cobra.Command{
		Use:               verb + " UNIT…",
		Short:             short,
		Args:              atLeastOne,
		ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := s.client()
			defer c.Close()
			groups, err := s.find(cmd.Context(), c, args)
			if err != nil {
				return explained(err)
			}
			return s.do(cmd.Context(), c, verb, groups, !noBlock)
		},
	}
	c.Flags().BoolVar(&noBlock, "no-block", false, "do not wait for the end")
	return c
}

func atLeastOne(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return &Exit{exitUsage, fmt.Errorf("name at least one unit: %s", cmd.UseLine())}
	}
	return nil
}

// do asks for all units at once, so that each waits only for what it depends
// on, and reports in the order in which they were named.
func (s *session) do(ctx context.Context, c *hostclient.Client, verb string, groups []hostapi.Group, wait bool) error {
	asJSON, err := s.json()
	if err != nil {
		return err
	}
	results := make([]hostapi.Result, len(groups))
	errs := make([]error, len(groups))
	var all sync.WaitGroup
	for i, g := range groups {
		all.Go(func() { results[i], errs[i] = c.DoIn(ctx, s.jobMode, g.Spec.Name, verb, wait) })
	}
	all.Wait()
	var failed []string
	code := exitFailure
	named := map[string]hostapi.Result{}
	for i, g := range groups {
		if err := errs[i]; err != nil {
			err = explained(err)
			if e, ok := err.(*Exit); ok {
				code = e.Status
			}
			failed = append(failed, err.Error())
			continue
		}
		named[g.Spec.Name] = results[i]
		if m := results[i].Message; m != "" && !asJSON {
			fmt.Fprintln(s.Out, m)
		}
	}
	if asJSON {
		if err := s.printJSON(named); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return &Exit{code, fmt.Errorf("%s", strings.Join(failed, "\nlegion: "))}
	}
	return nil
}

func resetFailedCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:               "reset-failed [UNIT…]",
		Short:             "Forget that units have failed, and their count of restarts; without UNIT all",
		ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := s.client()
			defer c.Close()
			var groups []hostapi.Group
			var err error
			if len(args) > 0 {
				groups, err = s.find(cmd.Context(), c, args)
			} else if groups, err = c.Groups(cmd.Context()); err == nil {
				kept := groups[:0]
				for _, g := range groups {
					if g.ActiveState == "failed" {
						kept = append(kept, g)
					}
				}
				groups = kept
			}
			if err != nil {
				return explained(err)
			}
			return s.do(cmd.Context(), c, "reset-failed", groups, true)
		},
	}
}

// completeUnits completes the names of units; without a legiond there are none.
func (s *session) completeUnits(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, g := range groups {
		if t := title(g); strings.HasPrefix(t, typed) {
			out = append(out, t+"\t"+g.Spec.Description)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
