package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/calendar"
)

// calendarAnswer is what the verb prints for one expression.
type calendarAnswer struct {
	Original   string      `json:"original"`
	Normalized string      `json:"normalized"`
	Next       []time.Time `json:"next"` // empty: it never elapses again
}

func calendarCommand(s *session) *cobra.Command {
	count := 1
	c := &cobra.Command{
		Use:   "calendar EXPRESSION…",
		Short: "Show when an OnCalendar= expression elapses next",
		Long: "Show the normalised form of expressions of systemd.time(7), and when they elapse next.\n" +
			"Exit status: 0 all are valid, 1 one is not.",
		Example: "  legion calendar weekly 'Mon..Fri *-*-* 08:00 Europe/Berlin' -n 5",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &Exit{exitUsage, fmt.Errorf("name at least one expression: %s", cmd.UseLine())}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if count < 1 {
				return &Exit{exitUsage, fmt.Errorf("--iterations=%d: show at least one", count)}
			}
			return s.calendar(args, count, time.Now())
		},
	}
	c.Flags().IntVarP(&count, "iterations", "n", count, "how many elapses to show")
	return c
}

func (s *session) calendar(expressions []string, count int, now time.Time) error {
	asJSON, err := s.json()
	if err != nil {
		return err
	}
	answers, failed := []calendarAnswer{}, false
	for _, text := range expressions {
		e, err := calendar.Parse(text)
		if err != nil {
			fmt.Fprintln(s.Err, s.paint(red, "error: ")+err.Error())
			failed = true
			continue
		}
		a := calendarAnswer{Original: text, Normalized: e.String(), Next: []time.Time{}}
		for t, ok := e.Next(now, time.Local); ok && len(a.Next) < count; t, ok = e.Next(t, time.Local) {
			a.Next = append(a.Next, t)
		}
		answers = append(answers, a)
	}
	if asJSON {
		err = s.printJSON(answers)
	} else {
		for i, a := range answers {
			if i > 0 {
				fmt.Fprintln(s.Out)
			}
			s.printCalendar(a, now)
		}
	}
	if err == nil && failed {
		err = &Exit{Status: exitFailure}
	}
	return err
}

func (s *session) printCalendar(a calendarAnswer, now time.Time) {
	line := func(label, format string, args ...any) {
		fmt.Fprintf(s.Out, "%15s: %s\n", label, fmt.Sprintf(format, args...))
	}
	if a.Original != a.Normalized {
		line("Original form", "%s", a.Original)
	}
	line("Normalized form", "%s", a.Normalized)
	if len(a.Next) == 0 {
		line("Next elapse", "never")
	}
	for i, t := range a.Next {
		label := fmt.Sprintf("Iteration #%d", i+1)
		if i == 0 {
			label = "Next elapse"
		}
		line(label, "%s", moment(t))
		if own := calendar.FormatTime(t); own != moment(t) {
			line("(in its zone)", "%s", own)
		}
		line("From now", "%s", until(now, t))
	}
}

// until is how long it is to a time: two units are enough to read.
func until(now, t time.Time) string {
	if !t.After(now) {
		return "now"
	}
	d := t.Sub(now)
	if d >= time.Minute {
		d = d.Truncate(time.Second)
	} else {
		d = d.Truncate(100 * time.Millisecond)
	}
	return "in " + twoUnits(d)
}
