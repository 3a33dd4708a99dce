package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/unitfile"
)

// runAnalyze is systemd-analyze(1), as far as it speaks of services.
func runAnalyze(s *session, ctx context.Context, args []string) error {
	f := flags("systemd-analyze")
	iterations := f.Int("iterations", 1, "how many elapses calendar shows")
	order := f.Bool("order", false, "dot: only the order")
	require := f.Bool("require", false, "dot: only requirements")
	f.String("base-time", "", "accepted by calendar")
	f.String("root", "", "accepted")
	f.String("man", "", "accepted")
	f.Lookup("man").NoOptDefVal = "yes"
	f.String("recursive-errors", "", "accepted")
	accepted(f, "system", "user", "global", "no-pager", "generators", "quiet")
	if done, err := s.parse(f, args, "systemd-analyze [OPTION…] verify|calendar|timespan|timestamp|dot|blame|critical-chain|time"); done || err != nil {
		return err
	}
	verb, rest := "time", []string(nil)
	if f.NArg() > 0 {
		verb, rest = f.Arg(0), f.Args()[1:]
	}
	if len(rest) == 0 && slices.Contains([]string{"verify", "calendar", "timespan", "timestamp"}, verb) {
		return tooFew()
	}
	switch verb {
	case "verify":
		return s.analyzeVerify(ctx, rest)
	case "calendar":
		return s.calendar(rest, *iterations, time.Now())
	case "timespan":
		return s.timespans(rest)
	case "timestamp":
		return s.timestamps(rest, time.Now())
	case "dot":
		return s.dotGraph(ctx, rest, *order, *require)
	case "blame", "time", "critical-chain":
		return s.analyzeBoot(ctx, verb)
	}
	return &Exit{exitFailure, fmt.Errorf("Unknown command verb %s.", verb)} //lint:ignore ST1005 systemd-analyze's words
}

// analyzeVerify takes names of units beside paths; what is not an error is
// still said on standard error, as systemd-analyze does.
func (s *session) analyzeVerify(ctx context.Context, args []string) error {
	q := *s
	q.Out = s.Err
	t := s.tree(ctx, &fileFlags{})
	files := make([]string, len(args))
	for i, a := range args {
		files[i] = a
		if filepath.Base(a) == a && !exists(a) {
			if u, err := t.Find(a); err == nil {
				files[i] = u.Path
			}
		}
	}
	return q.verify(files)
}

func (s *session) timespans(args []string) error {
	for i, a := range args {
		usec, err := calendar.ParseUsec(a, calendar.Second)
		if err != nil {
			return &Exit{exitFailure, fmt.Errorf("Failed to parse time span %q: %w", a, err)} //lint:ignore ST1005 systemd-analyze's words
		}
		if i > 0 {
			fmt.Fprintln(s.Out)
		}
		fmt.Fprintf(s.Out, "Original: %s\n      μs: %d\n   Human: %s\n", a, usec, calendar.Format(usec, 1))
	}
	return nil
}

func (s *session) timestamps(args []string, now time.Time) error {
	for i, a := range args {
		t, err := when("timestamp", a, now)
		if err != nil {
			return &Exit{exitFailure, err}
		}
		if i > 0 {
			fmt.Fprintln(s.Out)
		}
		fmt.Fprintf(s.Out, "  Original form: %s\nNormalized form: %s\n       (in UTC): %s\n   UNIX seconds: @%d\n       From now: %s\n",
			a, calendar.FormatTime(t), calendar.FormatTime(t.UTC()), t.Unix(), relative(now, t))
	}
	return nil
}

func relative(now, t time.Time) string {
	if t.After(now) {
		return until(now, t)
	}
	return ago(now, t)
}

// dotGraph prints the units and their edges in graphviz's language, in the
// colours of systemd-analyze(1).
func (s *session) dotGraph(ctx context.Context, patterns []string, order, require bool) error {
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	if err != nil {
		return explained(err)
	}
	if patterns, err = mangled(patterns); err != nil {
		return err
	}
	both := order == require
	var out []string
	for _, g := range groups {
		d := g.Spec.Deps
		for _, e := range []struct {
			to     []string
			colour string
			shown  bool
		}{
			{d.After, "green", both || order},
			{d.Requires, "black", both || require},
			{d.Requisite, "darkblue", both || require},
			{d.BindsTo, "gold", both || require},
			{d.Wants, "grey66", both || require},
			{d.Conflicts, "red", both || require},
		} {
			for _, to := range e.to {
				if e.shown && (matches(g.Spec.Name, patterns) || matches(to, patterns)) {
					out = append(out, fmt.Sprintf("\t%q->%q [color=%q];", g.Spec.Name, to, e.colour))
				}
			}
		}
	}
	sort.Strings(out)
	_, err = fmt.Fprintf(s.Out, "digraph systemd {\n%s\n}\n", strings.Join(slices.Compact(out), "\n"))
	return err
}

func (s *session) analyzeBoot(ctx context.Context, verb string) error {
	b, err := s.readBoot(ctx)
	if err != nil {
		return explained(err)
	}
	switch verb {
	case "blame":
		sort.SliceStable(b.Spans, func(i, j int) bool { return b.Spans[i].took() > b.Spans[j].took() })
		for _, x := range b.Spans {
			fmt.Fprintf(s.Out, "%12s %s\n", calendar.FormatDuration(x.took().Truncate(time.Millisecond)), x.Unit)
		}
	case "time":
		fmt.Fprintf(s.Out, "Startup finished in %s (userspace)\n", calendar.FormatDuration(b.total().Truncate(time.Millisecond)))
	default:
		return s.criticalChain(ctx, b)
	}
	return nil
}

// criticalChain follows from what was up last to what it waited for.
func (s *session) criticalChain(ctx context.Context, b *boot) error {
	if len(b.Spans) == 0 {
		return &Exit{exitFailure, errors.New("nothing was started at boot")}
	}
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	if err != nil {
		return explained(err)
	}
	after := map[string][]string{}
	for _, g := range groups {
		after[g.Spec.Name] = append(after[g.Spec.Name], g.Spec.Deps.After...)
		for _, to := range g.Spec.Deps.Before {
			after[to] = append(after[to], g.Spec.Name)
		}
	}
	span := map[string]bootSpan{}
	last := b.Spans[0]
	for _, x := range b.Spans {
		span[x.Unit] = x
		if x.Up.After(last.Up) {
			last = x
		}
	}
	fmt.Fprint(s.Out, "The time when unit became active or started is printed after the \"@\" character.\nThe time the unit took to start is printed after the \"+\" character.\n\n")
	seen := map[string]bool{}
	for depth := 0; !seen[last.Unit]; depth++ {
		seen[last.Unit] = true
		indent := ""
		if depth > 0 {
			indent = strings.Repeat("  ", depth-1) + "└─"
		}
		fmt.Fprintf(s.Out, "%s%s @%s +%s\n", indent, last.Unit, calendar.FormatDuration(last.From.Sub(b.Began).Truncate(time.Millisecond)), calendar.FormatDuration(last.took().Truncate(time.Millisecond)))
		var next bootSpan
		for _, n := range after[last.Unit] {
			if x, ok := span[n]; ok && x.Up.After(next.Up) && !seen[n] {
				next = x
			}
		}
		if next.Unit == "" {
			return nil
		}
		last = next
	}
	return nil
}

// unitNameOr turns what was typed into a unit's name.
func unitNameOr(typed, suffix string) (string, error) {
	if unitfile.ValidName(typed, unitfile.Plain|unitfile.Instance) {
		return typed, nil
	}
	name := unitfile.Escape(typed) + suffix
	if !unitfile.ValidName(name, unitfile.Plain|unitfile.Instance) {
		return "", fmt.Errorf("%q cannot be the name of a unit", typed)
	}
	return name, nil
}
