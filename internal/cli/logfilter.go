package cli

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
)

// logFilter chooses among lines of output.
type logFilter struct {
	until time.Time
	grep  *regexp.Regexp
	// low and high bound the syslog priority; 0 is emerg, 7 debug.
	low, high int
	// speaks, where not nil, says whether a line of a unit is wanted by who has
	// said it.
	speaks func(unitLog) bool
}

var priorities = []string{"emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"}

// newFilter reads the flags of logs and journalctl.
func newFilter(until, grep, priority string, now time.Time) (f logFilter, err error) {
	f.high = len(priorities) - 1
	if until != "" {
		if f.until, err = when("--until", until, now); err != nil {
			return f, err
		}
	}
	if grep != "" {
		pattern := grep
		if pattern == strings.ToLower(pattern) {
			pattern = "(?i)" + pattern // as journalctl(1) has it
		}
		if f.grep, err = regexp.Compile(pattern); err != nil {
			return f, fmt.Errorf("--grep %q is not a regular expression: %w", grep, err)
		}
	}
	if priority == "" {
		return f, nil
	}
	from, to, isRange := strings.Cut(priority, "..")
	if f.high, err = parsePriority(from); err != nil || !isRange {
		return f, err
	}
	f.low = f.high
	if f.high, err = parsePriority(to); err == nil && f.low > f.high {
		f.low, f.high = f.high, f.low
	}
	return f, err
}

func parsePriority(s string) (int, error) {
	if i := slices.Index(priorities, s); i >= 0 {
		return i, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n < len(priorities) {
		return n, nil
	}
	return 0, fmt.Errorf("%q is not a priority: write one of %s, or 0 to 7", s, strings.Join(priorities, ", "))
}

// defaultPriority is that of a line which does not say it: info.
const defaultPriority = 6

// cutPriority takes the prefix "<3>" of sd-daemon(3) off a line.
func cutPriority(text string) (int, string) {
	if len(text) > 2 && text[0] == '<' && text[2] == '>' && text[1] >= '0' && text[1] <= '7' {
		return int(text[1] - '0'), text[3:]
	}
	return defaultPriority, text
}

func (f *logFilter) passes(l logLine) bool {
	priority, text := cutPriority(l.Text)
	return (f.until.IsZero() || !l.Time.After(f.until)) && (f.grep == nil || f.grep.MatchString(text)) && priority >= f.low && priority <= f.high
}

// none says whether every line passes.
func (f *logFilter) none() bool {
	return f.until.IsZero() && f.grep == nil && f.speaks == nil && f.low == 0 && f.high >= len(priorities)-1
}

// unitLog is a line with the unit that wrote it.
type unitLog struct {
	logLine
	unit string
}

// collect gives the lines of several units in the order of time, the last
// q.Tail of those that pass, and then, following, new ones as they come.
func collect(ctx context.Context, c *hostclient.Client, groups []hostapi.Group, q hostapi.LogQuery, f logFilter, emit func(unitLog) error) error {
	tail, follow := q.Tail, q.Follow
	q.Follow = false
	if !f.none() {
		q.Tail = -1
	}
	var lines []unitLog
	for _, g := range groups {
		keep := func(l logLine) error {
			if u := (unitLog{l, g.Spec.Name}); f.passes(l) && (f.speaks == nil || f.speaks(u)) {
				lines = append(lines, u)
			}
			return nil
		}
		// A unit that has written nothing yet has no log.
		if err := eachLog(ctx, c, g.Spec, q, keep); err != nil && !notFound(err) {
			return err
		}
	}
	sort.SliceStable(lines, func(i, j int) bool { return lines[i].Time.Before(lines[j].Time) })
	if tail >= 0 && len(lines) > tail {
		lines = lines[len(lines)-tail:]
	}
	last := time.Time{}
	for _, l := range lines {
		if err := emit(l); err != nil {
			return err
		}
		last = l.Time
	}
	if !follow {
		return nil
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	q.Follow, q.Tail = true, -1
	if !last.IsZero() {
		q.Since = last.Add(time.Nanosecond)
	} else if tail >= 0 {
		q.Tail = tail
	}
	for _, g := range groups {
		all.Go(func() {
			_ = eachLog(ctx, c, g.Spec, q, func(l logLine) error {
				mu.Lock()
				defer mu.Unlock()
				u := unitLog{l, g.Spec.Name}
				if !f.passes(l) || f.speaks != nil && !f.speaks(u) {
					return nil
				}
				return emit(u)
			})
		})
	}
	all.Wait()
	return nil
}

// notFound says whether legiond has no such thing.
func notFound(err error) bool {
	var e *hostapi.Error
	return errors.As(err, &e) && e.Code == "not-found"
}
