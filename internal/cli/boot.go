package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// boot is how the services came up after legiond had started.
type boot struct {
	Began time.Time  `json:"began"`
	Spans []bootSpan `json:"units"` // in the order in which they began
}

// bootSpan is one unit from the beginning of its start to its end.
type bootSpan struct {
	Unit   string    `json:"unit"`
	From   time.Time `json:"from"`
	Up     time.Time `json:"up"`
	Failed bool      `json:"failed,omitempty"`
}

func (x bootSpan) took() time.Duration { return x.Up.Sub(x.From) }

func (b *boot) total() time.Duration {
	var t time.Duration
	for _, x := range b.Spans {
		t = max(t, x.Up.Sub(b.Began))
	}
	return t
}

func bootCommand(s *session) *cobra.Command {
	var svg string
	c := &cobra.Command{
		Use: "boot", Short: "Show what took how long when legiond started, as a chart", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := s.json()
			if err != nil {
				return err
			}
			b, err := s.readBoot(cmd.Context())
			if err != nil {
				return explained(err)
			}
			if asJSON {
				return s.printJSON(b)
			}
			if svg == "-" {
				_, err := io.WriteString(s.Out, b.svg())
				return err
			}
			if svg != "" {
				if err := os.WriteFile(svg, []byte(b.svg()), 0o644); err != nil {
					return &Exit{exitFailure, fmt.Errorf("cannot write the chart: %w", err)}
				}
				return nil
			}
			return s.printBoot(b)
		},
	}
	c.Flags().StringVar(&svg, "svg", "", "write the chart as SVG into this file, or - for standard output")
	return c
}

// readBoot finds the first start of each unit since legiond started, in
// legiond's journal of events.
func (s *session) readBoot(ctx context.Context) (*boot, error) {
	c := s.client()
	defer c.Close()
	info, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	b := &boot{Began: info.StartedAt, Spans: []bootSpan{}}
	file := filepath.Join(filepath.Dir(info.StateDir), "log", "events")
	started := map[string]*bootSpan{}
	for _, f := range []string{file + ".1", file} {
		r, err := os.Open(f)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read legiond's events: %w", err)
		}
		for d := json.NewDecoder(r); ; {
			var t hostapi.Transition
			if d.Decode(&t) != nil {
				break // the end, or a line that a power cut has cut
			}
			b.take(started, t)
		}
		r.Close()
	}
	for _, x := range started {
		if !x.Up.IsZero() {
			b.Spans = append(b.Spans, *x)
		}
	}
	sort.Slice(b.Spans, func(i, j int) bool {
		if !b.Spans[i].From.Equal(b.Spans[j].From) {
			return b.Spans[i].From.Before(b.Spans[j].From)
		}
		return b.Spans[i].Unit < b.Spans[j].Unit
	})
	return b, nil
}

// take notes one transition.
func (b *boot) take(started map[string]*bootSpan, t hostapi.Transition) {
	if t.At.Before(b.Began) {
		return
	}
	x := started[t.Group]
	switch {
	case x == nil && (t.From == service.Dead || t.From == service.Failed):
		x = &bootSpan{Unit: t.Group, From: t.At}
		started[t.Group] = x
	case x == nil:
		return
	}
	if x.Up.IsZero() {
		switch t.To {
		case service.Running, service.Exited, service.Dead:
			x.Up = t.At
		case service.Failed, service.AutoRestart:
			x.Up, x.Failed = t.At, true
		}
	}
}

func (s *session) printBoot(b *boot) error {
	if len(b.Spans) == 0 {
		_, err := fmt.Fprintln(s.Out, "nothing was started since legiond started")
		return err
	}
	total := max(b.total(), time.Millisecond)
	width := 0
	for _, x := range b.Spans {
		width = max(width, utf8.RuneCountInString(x.Unit))
	}
	const chart = 50
	fmt.Fprintf(s.Out, "legiond started at %s; %d units came up within %s\n\n", moment(b.Began), len(b.Spans), calendar.FormatDuration(total.Truncate(time.Millisecond)))
	for _, x := range b.Spans {
		from := min(int(chart*x.From.Sub(b.Began)/total), chart-1)
		length := min(max(1, int(chart*x.took()/total)), chart-from)
		bar := strings.Repeat(" ", from) + s.paint(map[bool]string{true: red, false: green}[x.Failed], strings.Repeat("█", length)) + strings.Repeat(" ", chart-from-length)
		fmt.Fprintf(s.Out, "%-*s  %s  +%s\n", width, x.Unit, bar, calendar.FormatDuration(x.took().Truncate(time.Millisecond)))
	}
	return nil
}

func (b *boot) svg() string {
	const row, left, chart = 20, 260, 800
	total := max(b.total(), time.Millisecond)
	height := row*(len(b.Spans)+2) + 10
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+chart+120, height)
	fmt.Fprintf(&w, `<text x="10" y="16">%d units came up within %s, from %s</text>`+"\n", len(b.Spans), calendar.FormatDuration(total.Truncate(time.Millisecond)), html.EscapeString(moment(b.Began)))
	for i, x := range b.Spans {
		y := row * (i + 2)
		colour := "#3a8f4d"
		if x.Failed {
			colour = "#b3332b"
		}
		from := float64(left) + float64(chart)*float64(x.From.Sub(b.Began))/float64(total)
		length := max(1, float64(chart)*float64(x.took())/float64(total))
		fmt.Fprintf(&w, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%.1f" y="%d" width="%.1f" height="14" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
			left-8, y, html.EscapeString(x.Unit), from, y-11, length, colour, from+length+4, y, calendar.FormatDuration(x.took().Truncate(time.Millisecond)))
	}
	w.WriteString("</svg>\n")
	return w.String()
}
