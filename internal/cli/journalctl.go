package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// journalFlags are those of journalctl(1) that mean something here.
type journalFlags struct {
	units, identifiers           []string
	fields                       map[string][]string
	values                       string
	boots                        bool
	follow, reverse, quiet       bool
	lines, since, until          string
	priority, grep, output, boot string
	noHostname, utc, kernel, end bool
}

func runJournalctl(s *session, ctx context.Context, args []string) error {
	var j journalFlags
	f := flags("journalctl")
	f.StringArrayVarP(&j.units, "unit", "u", nil, "only what these units wrote")
	f.StringArrayVar(&j.units, "user-unit", nil, "as --unit")
	f.StringArrayVarP(&j.identifiers, "identifier", "t", nil, "only lines of this syslog identifier")
	f.BoolVarP(&j.follow, "follow", "f", false, "go on with what is written from now on")
	f.BoolVarP(&j.reverse, "reverse", "r", false, "newest lines first")
	f.BoolVarP(&j.end, "pager-end", "e", false, "the last 1000 lines")
	f.BoolVarP(&j.quiet, "quiet", "q", false, "no remarks")
	f.StringVarP(&j.lines, "lines", "n", "", "how many of the last lines")
	f.Lookup("lines").NoOptDefVal = "10"
	f.StringVarP(&j.since, "since", "S", "", "no older lines")
	f.StringVarP(&j.until, "until", "U", "", "no newer lines")
	f.StringVarP(&j.priority, "priority", "p", "", "a priority, or a range of them")
	f.StringVarP(&j.grep, "grep", "g", "", "only lines that match")
	f.StringVarP(&j.output, "output", "o", "short", "short, short-iso, short-precise, short-unix, cat, json, json-pretty, with-unit")
	f.StringVarP(&j.boot, "boot", "b", "", "0: only this boot; others cannot be told apart")
	f.Lookup("boot").NoOptDefVal = "0"
	f.BoolVarP(&j.kernel, "dmesg", "k", false, "the kernel's messages: none are kept")
	f.BoolVar(&j.noHostname, "no-hostname", false, "without the name of the host")
	f.BoolVar(&j.utc, "utc", false, "times in UTC")
	f.BoolP("all", "a", false, "accepted")
	f.BoolP("catalog", "x", false, "accepted")
	f.BoolP("merge", "m", false, "accepted")
	accepted(f, "system", "user", "no-pager", "no-full", "full", "no-tail", "flush", "sync", "rotate")
	f.StringVarP(&j.values, "field", "F", "", "print the values of a field")
	f.BoolVar(&j.boots, "list-boots", false, "print the boots: this one, others cannot be told apart")
	for _, n := range []string{"vacuum-size", "vacuum-time", "vacuum-files", "output-fields", "case-sensitive"} {
		f.String(n, "", "accepted")
	}
	if done, err := s.parse(f, joinShort(args, "n"), "journalctl [OPTION…] [_SYSTEMD_UNIT=NAME…]"); done || err != nil {
		return err
	}
	for _, n := range []string{"flush", "sync", "rotate", "vacuum-size", "vacuum-time", "vacuum-files"} {
		if f.Changed(n) {
			return nil // logs are files of bounded size, written at once
		}
	}
	for _, a := range f.Args() {
		if err := j.match(a); err != nil {
			return &Exit{exitFailure, err}
		}
	}
	if len(j.units) == 0 {
		j.units = j.fields["_SYSTEMD_UNIT"] // no others need be read
	}
	return s.journal(ctx, &j)
}

// joinShort ties a number to the short flag in front of it: an optional value
// is else only read in one word.
func joinShort(args []string, flag string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		short := strings.HasPrefix(args[i], "-") && !strings.HasPrefix(args[i], "--")
		if i+1 < len(args) && (short && strings.HasSuffix(args[i], flag) || args[i] == "--lines") {
			if _, err := strconv.Atoi(args[i+1]); err == nil || args[i+1] == "all" {
				if others := strings.TrimSuffix(args[i], flag); short && others != "-" {
					out = append(out, others)
				}
				out = append(out, "--lines="+args[i+1])
				i++
				continue
			}
		}
		// -n5, also behind other letters: -qn5.
		others, number, found := strings.Cut(args[i], flag)
		if _, err := strconv.Atoi(number); short && found && (err == nil || number == "all") {
			if others != "-" {
				out = append(out, others)
			}
			out = append(out, "--lines="+number)
			continue
		}
		out = append(out, args[i])
	}
	return out
}

func (s *session) journal(ctx context.Context, j *journalFlags) error {
	now := time.Now()
	q := hostapi.LogQuery{Tail: -1, Follow: j.follow}
	var err error
	if j.since != "" {
		if q.Since, err = when("--since", j.since, now); err != nil {
			return &Exit{exitFailure, err}
		}
	}
	if (j.boot == "0" || j.boots) && q.Since.Before(booted()) {
		q.Since = booted()
	}
	filter, err := newFilter(j.until, j.grep, j.priority, now)
	if err != nil {
		return &Exit{exitFailure, err}
	}
	switch {
	case j.lines == "all":
	case j.lines != "":
		if q.Tail, err = strconv.Atoi(j.lines); err != nil {
			return &Exit{exitFailure, fmt.Errorf("journalctl: %q is not a number of lines", j.lines)}
		}
	case j.follow:
		q.Tail = 10
	case j.end:
		q.Tail = 1000
	}
	if j.kernel {
		return nil
	}
	c := s.client()
	defer c.Close()
	all, err := c.Groups(ctx)
	if err != nil {
		return explained(err)
	}
	groups := slices.DeleteFunc(all, func(g hostapi.Group) bool { return len(g.Spec.Services) == 0 || !j.chosen(g) })
	if len(j.units) == 0 {
		groups = append(groups, hostapi.Group{Spec: service.Group{Name: hostapi.Outside, Services: []service.Service{{Name: hostapi.Outside}}}})
	}
	var lines []unitLog
	count := 0
	host, _ := os.Hostname()
	fields := newJournalFields(host, groups)
	if len(j.identifiers)+len(j.fields) > 0 {
		filter.speaks = func(l unitLog) bool {
			return (len(j.identifiers) == 0 || slices.Contains(j.identifiers, speaker(l, fields.ids).tag)) && j.passes(fields.of(l))
		}
	}
	if j.values != "" || j.boots {
		return s.journalFacts(ctx, c, j, groups, q, filter, fields)
	}
	write, err := s.journalWriter(j, fields)
	if err != nil {
		return err
	}
	emit := func(l unitLog) error {
		count++
		if j.reverse {
			lines = append(lines, l)
			return nil
		}
		return write(l)
	}
	err = collect(ctx, c, groups, q, filter, emit)
	for i := len(lines) - 1; i >= 0 && err == nil; i-- {
		err = write(lines[i])
	}
	if ctx.Err() != nil {
		return nil
	}
	if err == nil && count == 0 && !j.quiet && j.output != "json" {
		fmt.Fprintln(s.Out, "-- No entries --")
	}
	if err == nil && count == 0 && filter.grep != nil {
		return &Exit{Status: exitFailure}
	}
	return err
}

func (j *journalFlags) chosen(g hostapi.Group) bool {
	return len(j.units) == 0 || slices.ContainsFunc(j.units, func(u string) bool {
		pattern, err := unitfile.Mangle(u, true)
		return called(g, u) || err == nil && matches(g.Spec.Name, []string{pattern})
	})
}

// identifier is the name in front of a line: that of the program.
func identifier(g service.Group) string {
	if len(g.Services) > 0 && len(g.Services[0].Start) > 0 {
		path := g.Services[0].Start[0].Path
		return path[strings.LastIndexByte(path, '/')+1:]
	}
	return strings.TrimSuffix(g.Name, ".service")
}

// said is a line taken apart: what came by syslog has its own tag and PID in
// front, and else speaks its unit's program.
type said struct {
	priority  int
	tag, pid  string
	text      string
	transport string
}

// name is what stands in front of the text.
func (v said) name() string {
	if v.pid == "" {
		return v.tag
	}
	return v.tag + "[" + v.pid + "]"
}

// speaker takes a line apart; ids are the programs of units.
func speaker(l unitLog, ids map[string]string) said {
	priority, text := cutPriority(l.Text)
	if head, rest, ok := strings.Cut(text, "]: "); ok && !strings.Contains(head, " ") {
		if tag, pid, ok := strings.Cut(head, "["); ok && tag != "" {
			if _, err := strconv.ParseUint(pid, 10, 32); err == nil {
				return said{priority, tag, pid, rest, "syslog"}
			}
		}
	}
	if l.unit == hostapi.Outside {
		if tag, rest, ok := strings.Cut(text, ": "); ok && tag != "" && !strings.Contains(tag, " ") {
			return said{priority: priority, tag: tag, text: rest, transport: "syslog"}
		}
	}
	return said{priority: priority, tag: ids[l.unit], text: text, transport: "stdout"}
}

// journalWriter prints a line in one of journalctl's forms.
func (s *session) journalWriter(j *journalFlags, of *journalFields) (func(unitLog) error, error) {
	host, ids := of.host, of.ids
	if j.output == "cat" {
		return func(l unitLog) error {
			_, err := fmt.Fprintln(s.Out, speaker(l, ids).text)
			return err
		}, nil
	}
	if strings.HasPrefix(j.output, "json") {
		e := json.NewEncoder(s.Out)
		e.SetEscapeHTML(false)
		if j.output == "json-pretty" {
			e.SetIndent("", "\t")
		}
		return func(l unitLog) error {
			return e.Encode(of.of(l))
		}, nil
	}
	layout, ok := map[string]string{
		"short": time.Stamp, "short-full": "Mon 2006-01-02 15:04:05 MST", "short-iso": "2006-01-02T15:04:05-0700", "short-iso-precise": "2006-01-02T15:04:05.000000-0700",
		"short-precise": "Jan _2 15:04:05.000000", "with-unit": "Mon 2006-01-02 15:04:05 MST", "short-unix": "", "verbose": "Mon 2006-01-02 15:04:05.000000 MST",
		"short-monotonic": "Jan _2 15:04:05.000000",
	}[j.output]
	if !ok {
		return nil, &Exit{exitFailure, fmt.Errorf("Unknown output format '%s'.", j.output)} //lint:ignore ST1005 journalctl's words
	}
	layout = strings.Replace(layout, "_2", "02", 1)
	return func(l unitLog) error {
		at := l.Time.Local()
		if j.utc {
			at = l.Time.UTC()
		}
		head := at.Format(layout)
		if layout == "" {
			head = fmt.Sprintf("%d.%06d", at.Unix(), at.Nanosecond()/1000)
		}
		if !j.noHostname {
			head += " " + host
		}
		v := speaker(l, ids)
		id := v.name()
		if j.output == "with-unit" {
			id = l.unit
		}
		_, err := fmt.Fprintf(s.Out, "%s %s: %s\n", head, id, v.text)
		return err
	}, nil
}
