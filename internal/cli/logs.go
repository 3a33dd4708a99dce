package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

// logFlags are those of logs.
type logFlags struct {
	units                        []string
	since, until, grep, priority string
	lines                        int
}

func logsCommand(s *session) *cobra.Command {
	q := hostapi.LogQuery{Tail: -1}
	var l logFlags
	c := &cobra.Command{
		Use:   "logs [UNIT…]",
		Short: "Show what units have written; without UNIT all, in the order of time",
		Example: "  legion logs ssh -f\n" +
			"  legion logs --since 10min --grep error -p warning\n" +
			"  legion logs -u nginx -u php-fpm -n 20 -o json",
		ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			now := time.Now()
			var err error
			if q.Since, err = sinceWhen(l.since, now); err != nil {
				return &Exit{exitUsage, err}
			}
			f, err := newFilter(l.until, l.grep, l.priority, now)
			if err != nil {
				return &Exit{exitUsage, err}
			}
			q.Tail = l.lines
			return explained(s.logs(cmd.Context(), append(args, l.units...), q, f))
		},
	}
	f := c.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on with what they write from now on")
	f.IntVarP(&l.lines, "lines", "n", -1, "how many of the last lines (all)")
	f.BoolVar(&q.Previous, "previous", false, "the run before the newest one")
	f.Uint64Var(&q.Run, "run", 0, "one run, by its number")
	f.StringVarP(&q.Service, "container", "c", "", "one service of several: a pod's container")
	f.StringArrayVarP(&l.units, "unit", "u", nil, "a unit; may be given several times")
	f.StringVarP(&l.since, "since", "S", "", "leave out what is older: a span (10min, 2h) or a time (2006-01-02 15:04:05)")
	f.StringVarP(&l.until, "until", "U", "", "leave out what is newer: as --since")
	f.StringVarP(&l.grep, "grep", "g", "", "only lines that match the regular expression; without capitals it takes both cases")
	f.StringVarP(&l.priority, "priority", "p", "", "only lines at least as grave: err, warning …, or a range warning..crit; a line says it by <N> in front")
	return c
}

// sinceWhen reads --since.
func sinceWhen(text string, now time.Time) (time.Time, error) { return when("--since", text, now) }

// when reads a flag that is a time, or a span of time before now.
func when(flag, text string, now time.Time) (time.Time, error) {
	y, m, d := now.Date()
	midnight := time.Date(y, m, d, 0, 0, 0, 0, now.Location())
	switch text {
	case "now":
		return now, nil
	case "today":
		return midnight, nil
	case "yesterday":
		return midnight.AddDate(0, 0, -1), nil
	}
	if n, err := strconv.ParseFloat(strings.TrimPrefix(text, "@"), 64); err == nil && strings.HasPrefix(text, "@") {
		return time.UnixMicro(int64(n * 1e6)), nil
	}
	if text == "" {
		return time.Time{}, nil
	}
	if d, infinite, err := calendar.ParseDuration(strings.TrimSuffix(strings.TrimPrefix(text, "-"), " ago")); err == nil {
		if infinite {
			return time.Time{}, nil
		}
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02 15:04", time.DateOnly, time.TimeOnly, "15:04"} {
		t, err := time.ParseInLocation(layout, text, time.Local)
		if err != nil {
			continue
		}
		if t.Year() == 0 { // a time of today
			y, m, d := now.Date()
			t = time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), 0, time.Local)
		}
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%s %q is neither a span of time (10min, 2h) nor a time (2006-01-02 15:04:05)", flag, text)
}

func (s *session) logs(ctx context.Context, typed []string, q hostapi.LogQuery, f logFilter) error {
	format := s.output
	if format != "" && format != "json" && format != "cat" {
		return &Exit{exitUsage, fmt.Errorf("unknown output format %q: leave -o out, or write -o json or -o cat", format)}
	}
	c := s.client()
	defer c.Close()
	var groups []hostapi.Group
	var err error
	if len(typed) > 0 {
		groups, err = s.find(ctx, c, typed)
	} else if groups, err = c.Groups(ctx); err == nil {
		groups = slices.DeleteFunc(groups, func(g hostapi.Group) bool { return len(g.Spec.Services) == 0 })
	}
	if err != nil {
		return err
	}
	write := func(l logLine) error {
		switch format {
		case "json":
			return json.NewEncoder(s.Out).Encode(l)
		case "cat":
			_, err := fmt.Fprintln(s.Out, l.Text)
			return err
		}
		_, err := fmt.Fprintln(s.Out, s.formatLine(l))
		return err
	}
	switch {
	case len(groups) == 1 && f.none():
		g := groups[0].Spec
		err = eachLog(ctx, c, g, q, func(l logLine) error {
			if len(g.Services) < 2 || q.Service != "" {
				l.Service = ""
			}
			return write(l)
		})
	default:
		err = collect(ctx, c, groups, q, f, func(l unitLog) error {
			switch {
			case len(groups) == 1 && len(groups[0].Spec.Services) < 2:
				l.Service = ""
			case len(groups) > 1:
				l.Service = l.unit
			}
			return write(l.logLine)
		})
	}
	if ctx.Err() != nil {
		return nil // the person has seen enough
	}
	return err
}

func oneLog(ctx context.Context, c *hostclient.Client, group string, q hostapi.LogQuery, f func(logLine) error) error {
	r, err := c.Logs(ctx, group, q)
	if err != nil {
		return err
	}
	defer r.Close()
	return readLog(r, f)
}

// eachLog shows what several services have written, each line with the name of
// its service: in the order of time, or as it comes where the log is followed.
func eachLog(ctx context.Context, c *hostclient.Client, g service.Group, q hostapi.LogQuery, f func(logLine) error) error {
	if len(g.Services) == 1 || q.Service != "" {
		return oneLog(ctx, c, g.Name, q, func(l logLine) error {
			l.Service = orElse(q.Service, g.Services[0].Name)
			return f(l)
		})
	}
	var mu sync.Mutex
	var lines []logLine
	var all sync.WaitGroup
	errs := make([]error, len(g.Services))
	for i, svc := range g.Services {
		q := q
		q.Service = svc.Name
		all.Go(func() {
			errs[i] = oneLog(ctx, c, g.Name, q, func(l logLine) error {
				mu.Lock()
				defer mu.Unlock()
				l.Service = svc.Name
				if q.Follow {
					return f(l)
				}
				lines = append(lines, l)
				return nil
			})
		})
	}
	all.Wait()
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].Time.Before(lines[j].Time) })
	for _, l := range lines {
		if err := f(l); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// logLine is one line of output. The file has it in the CRI format: time,
// stream, F for a full line or P for a part of one, text.
type logLine struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Text   string    `json:"text"`
	// Service is set where a group has several.
	Service string `json:"service,omitempty"`
}

// readLog calls f for each line, parts put together.
func readLog(r io.Reader, f func(logLine) error) error {
	br := bufio.NewReader(r)
	pending := map[string]string{}
	for {
		raw, err := br.ReadString('\n')
		if raw = strings.TrimSuffix(raw, "\n"); raw != "" {
			l, partial := parseLine(raw)
			if partial {
				pending[l.Stream] += l.Text
			} else {
				l.Text = pending[l.Stream] + l.Text
				delete(pending, l.Stream)
				if err := f(l); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read the log on: %w", err)
		}
	}
}

func parseLine(raw string) (l logLine, partial bool) {
	stamp, rest, ok := strings.Cut(raw, " ")
	t, err := time.Parse(time.RFC3339Nano, stamp)
	stream, rest, ok2 := strings.Cut(rest, " ")
	tag, text, _ := strings.Cut(rest, " ")
	if err != nil || !ok || !ok2 {
		return logLine{Text: raw}, false
	}
	return logLine{Time: t, Stream: stream, Text: text}, tag == "P"
}

func (s *session) formatLine(l logLine) string {
	_, text := cutPriority(l.Text)
	if l.Service != "" {
		text = l.Service + " | " + text
	}
	if l.Stream == "stderr" {
		text = s.paint(yellow, text)
	}
	if l.Time.IsZero() {
		return text
	}
	return s.paint(grey, l.Time.Local().Format("2006-01-02 15:04:05.000")) + " " + text
}
