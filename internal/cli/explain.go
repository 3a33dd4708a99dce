package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostapi"
)

func explainCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "explain UNIT…",
		Short: "Say why units are as they are, who asked for it, and what comes next",
		Args:  atLeastOne,

		ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := s.json()
			if err != nil {
				return err
			}
			c := s.client()
			defer c.Close()
			groups, err := s.find(cmd.Context(), c, args)
			if err != nil {
				return explained(err)
			}
			var list []hostapi.Explanation
			for _, g := range groups {
				x, err := c.Explain(cmd.Context(), g.Spec.Name)
				if err != nil {
					return explained(err)
				}
				list = append(list, x)
			}
			if asJSON {
				return s.printJSON(list)
			}
			for i, x := range list {
				if i > 0 {
					fmt.Fprintln(s.Out)
				}
				s.printExplanation(x)
			}
			return nil
		},
	}
}

func (s *session) printExplanation(x hostapi.Explanation) {
	g := x.Group
	fmt.Fprintf(s.Out, "%s %s is %s\n", s.dot(g.ActiveState), title(g), s.paint(colourOf(g.ActiveState), g.ActiveState+" ("+g.SubState+")"))
	for _, part := range []struct {
		head  string
		lines []string
	}{{"Why", x.Why}, {"Asked by", x.Asked}, {"Waits for", x.Waits}, {"Next", x.Next}} {
		for i, line := range part.lines {
			if i == 0 {
				s.field(part.head, "%s", line)
			} else {
				s.more(line)
			}
		}
	}
	if len(x.History) == 0 {
		return
	}
	fmt.Fprintln(s.Out, "\nWhat happened, oldest first:")
	rows := [][]string{}
	for _, t := range x.History {
		name := ""
		if len(g.Spec.Services) > 1 {
			name = t.Service
		}
		run := ""
		if t.Run > 0 {
			run = fmt.Sprintf("run %d", t.Run)
		}
		rows = append(rows, []string{" ", t.At.Local().Format("15:04:05.000"), name, run, string(t.From) + " → " + string(t.To), t.Reason})
	}
	_ = s.columns(rows)
}
