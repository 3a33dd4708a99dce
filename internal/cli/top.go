package cli

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// topLine is one unit's use of the machine.
type topLine struct {
	Unit   string        `json:"unit"`
	CPU    float64       `json:"cpuPercent"` // of one processor, since the last look
	Time   time.Duration `json:"cpuTime"`
	Memory uint64        `json:"memoryBytes"`
	Tasks  int           `json:"tasks"`
}

func topCommand(s *session) *cobra.Command {
	delay, count, by := time.Second, 0, "cpu"
	c := &cobra.Command{
		Use: "top", Short: "Show what units use of processor and memory, again and again", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if delay <= 0 || by != "cpu" && by != "memory" && by != "tasks" && by != "name" {
				return &Exit{exitUsage, fmt.Errorf("--delay must be above 0, and --sort cpu, memory, tasks or name")}
			}
			return explained(s.top(cmd.Context(), delay, count, by))
		},
	}
	c.Flags().DurationVarP(&delay, "delay", "d", delay, "time between two looks")
	c.Flags().IntVarP(&count, "iterations", "n", 0, "end after so many looks (never)")
	c.Flags().StringVar(&by, "sort", by, "what to sort by: cpu, memory, tasks, name")
	return c
}

func (s *session) top(ctx context.Context, delay time.Duration, count int, by string) error {
	asJSON, err := s.json()
	if err != nil {
		return err
	}
	// The share of a processor is over the time between two looks.
	before, at, err := s.look(ctx)
	if err != nil {
		return err
	}
	for i := 0; count == 0 || i < count; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
		now, when, err := s.look(ctx)
		if err != nil {
			return err
		}
		lines := compare(before, now, when.Sub(at), by)
		before, at = now, when
		if asJSON {
			err = s.printJSON(lines)
		} else {
			err = s.printTop(lines, i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *session) look(ctx context.Context) (map[string]usage, time.Time, error) {
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	out := map[string]usage{}
	for _, g := range groups {
		var u usage
		for _, st := range g.Status.Services {
			u.add(usageOf(st))
		}
		if u.tasks > 0 {
			out[title(g)] = u
		}
	}
	return out, time.Now(), err
}

func compare(before, now map[string]usage, took time.Duration, by string) []topLine {
	lines := []topLine{}
	for name, u := range now {
		l := topLine{Unit: name, Time: u.cpu, Memory: u.memory, Tasks: u.tasks}
		if old, ok := before[name]; ok && u.cpu > old.cpu && took > 0 {
			l.CPU = 100 * float64(u.cpu-old.cpu) / float64(took)
		}
		lines = append(lines, l)
	}
	sort.Slice(lines, func(i, j int) bool {
		a, b := lines[i], lines[j]
		switch {
		case by == "cpu" && a.CPU != b.CPU:
			return a.CPU > b.CPU
		case by == "tasks" && a.Tasks != b.Tasks:
			return a.Tasks > b.Tasks
		case by != "name" && a.Memory != b.Memory:
			return a.Memory > b.Memory
		}
		return a.Unit < b.Unit
	})
	return lines
}

func (s *session) printTop(lines []topLine, look int) error {
	if s.Colour {
		fmt.Fprint(s.Out, "\x1b[H\x1b[2J") // a terminal: the table stays in its place
	} else if look > 0 {
		fmt.Fprintln(s.Out)
	}
	rows := [][]string{{" ", "UNIT", "CPU%", "TIME", "MEMORY", "TASKS"}}
	for _, l := range lines {
		rows = append(rows, []string{" ", l.Unit, strconv.FormatFloat(l.CPU, 'f', 1, 64), l.Time.Round(time.Millisecond).String(), bytesText(l.Memory), strconv.Itoa(l.Tasks)})
	}
	return s.columns(rows)
}
