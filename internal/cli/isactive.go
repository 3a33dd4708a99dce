package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/unitfile"
)

func isActiveCommand(s *session) *cobra.Command {
	return s.stateCommand("is-active", "Say whether units are active; exit status 0 if one is", []string{"active", "reloading"})
}

func isFailedCommand(s *session) *cobra.Command {
	return s.stateCommand("is-failed", "Say whether units have failed; exit status 0 if one has", []string{"failed"})
}

func (s *session) stateCommand(verb, short string, good []string) *cobra.Command {
	var quiet bool
	c := &cobra.Command{
		Use: verb + " UNIT…", Short: short, Args: atLeastOne, ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error { return s.isState(cmd.Context(), args, good, quiet) },
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing, only exit")
	return c
}

// isState prints the state of each unit; the exit status says whether one of
// them is good, else 3, or 4 if none of them is known (systemctl(1)).
func (s *session) isState(ctx context.Context, args, good []string, quiet bool) error {
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	if err != nil {
		return explained(err)
	}
	any, known := false, false
	for _, a := range args {
		for _, state := range statesOf(groups, a) {
			if state == "" {
				state = "inactive"
			} else {
				known = true
			}
			any = any || slices.Contains(good, state)
			if !quiet {
				fmt.Fprintln(s.Out, state)
			}
		}
	}
	switch {
	case any:
		return nil
	case !known && slices.Contains(good, "active"):
		return &Exit{Status: exitNoSuchUnit}
	case slices.Contains(good, "active"):
		return &Exit{Status: exitNotRunning}
	}
	return &Exit{Status: exitFailure}
}

// statesOf are the states of the units that a name or pattern means; one that
// means none has the state "".
func statesOf(groups []hostapi.Group, typed string) []string {
	var out []string
	pattern, err := unitfile.Mangle(typed, true)
	for _, g := range groups {
		if called(g, typed) || err == nil && matches(g.Spec.Name, []string{pattern}) {
			out = append(out, g.ActiveState)
		}
	}
	if len(out) == 0 {
		return []string{""}
	}
	return out
}

// unreachable says whether there is no legiond to ask.
func unreachable(err error) bool {
	var e *hostapi.Error
	return errors.As(err, &e) && e.Code == "unreachable"
}

// quietly is a session that prints nothing but errors, if quiet is set.
func (s *session) quietly(quiet bool) *session {
	if !quiet {
		return s
	}
	q := *s
	q.Out = io.Discard
	return &q
}
