package calendar

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Errors of Parse, to be told apart by errors.Is.
var (
	ErrExpression      = errors.New("not a calendar expression")
	ErrExpressionRange = errors.New("calendar expression out of range")
)

// Expression is a set of points in time, as OnCalendar= has it.
type Expression struct {
	// weekdays has bit 0 for Monday; 0 is every day.
	weekdays uint8
	// A field that is nil matches every value.
	year, month, day, hour, minute chain
	// second is in microseconds and never nil.
	second chain
	// fromEnd: the days count from the end of the month, which is day 1.
	fromEnd bool
	// zone is nil for the local one, zoneName what it was called by.
	zone     *time.Location
	zoneName string
}

// part is one element of a list: start, start..stop or start/repeat.
type part struct {
	start  int
	stop   int // -1: none
	repeat int // 0: none
}

type chain []part

const usec = 1_000_000

// Years that an expression may name, and after which nothing elapses.
const (
	firstYear = 1970
	lastYear  = 2199
)

var weekdays = []string{"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}

// shorthands are the names of systemd.time(7), with the misspellings that
// systemd takes too.
var shorthands = map[string]string{
	"minutely":      "*-*-* *:*:00",
	"hourly":        "*-*-* *:00:00",
	"daily":         "*-*-* 00:00:00",
	"weekly":        "Mon *-*-* 00:00:00",
	"monthly":       "*-*-01 00:00:00",
	"quarterly":     "*-01,04,07,10-01 00:00:00",
	"semiannually":  "*-01,07-01 00:00:00",
	"semi-annually": "*-01,07-01 00:00:00",
	"biannually":    "*-01,07-01 00:00:00",
	"bi-annually":   "*-01,07-01 00:00:00",
	"yearly":        "*-01-01 00:00:00",
	"annually":      "*-01-01 00:00:00",
	"anually":       "*-01-01 00:00:00",
}

// Parse reads an expression. The names of time zones are looked up with
// time.LoadLocation.
func Parse(text string) (*Expression, error) {
	e := &Expression{}
	rest, err := e.parse(text)
	if err == nil && !e.valid() {
		err = fmt.Errorf("%w: %q: a value is outside of its range, or a repetition never comes", ErrExpression, text)
	} else if err != nil {
		err = fmt.Errorf("%w: %q: %s", err, text, rest)
	}
	if err != nil {
		return nil, err
	}
	e.normalise()
	return e, nil
}

// Zone is the time zone that the expression names; nil is the local one.
func (e *Expression) Zone() *time.Location { return e.zone }

// valid checks every value against its range.
func (e *Expression) valid() bool {
	last := 31
	if e.fromEnd {
		last = 28 // which every month has
	}
	within := func(c chain, low, high int, down bool) bool {
		return !slices.ContainsFunc(c, func(p part) bool { return !p.valid(low, high, down) })
	}
	return within(e.year, firstYear, lastYear, false) && within(e.month, 1, 12, false) && within(e.day, 1, last, e.fromEnd) &&
		within(e.hour, 0, 23, false) && within(e.minute, 0, 59, false) && within(e.second, 0, 60*usec-1, false)
}

// valid says whether the part is inside its range and elapses more than once
// where it repeats; down is for days that count from the end of the month.
func (p part) valid(low, high int, down bool) bool {
	switch {
	case p.start < low || p.start > high || p.repeat > high-low:
		return false
	case p.stop >= 0:
		return p.stop >= low && p.stop <= high && p.start <= p.stop && p.start+p.repeat <= max(p.stop, p.start+1) && (p.start+p.repeat <= p.stop || p.start == p.stop)
	case down:
		return p.start-p.repeat >= low
	}
	return p.start+p.repeat <= high
}

// normalise brings the expression into the form in which it is printed.
func (e *Expression) normalise() {
	if e.weekdays == 0x7f {
		e.weekdays = 0
	}
	if e.fromEnd && e.day == nil {
		e.fromEnd = false
	}
	for _, c := range []*chain{&e.year, &e.month, &e.day, &e.hour, &e.minute, &e.second} {
		c.normalise()
	}
	// "0/1" is every second: others beside it say nothing more, unless they
	// are between the seconds.
	every := part{start: 0, stop: -1, repeat: usec}
	if slices.Contains(e.second, every) && !slices.ContainsFunc(e.second, func(p part) bool { return p.start%usec != 0 || p.repeat%usec != 0 }) {
		e.second = chain{every}
	}
}

func (c *chain) normalise() {
	for i := range *c {
		p := &(*c)[i]
		if p.stop > p.start && p.repeat > 0 {
			p.stop -= (p.stop - p.start) % p.repeat
		}
		if p.stop == p.start {
			p.stop, p.repeat = -1, 0
		}
	}
	slices.SortStableFunc(*c, func(a, b part) int {
		if a.start != b.start {
			return a.start - b.start
		}
		if a.stop != b.stop {
			return a.stop - b.stop
		}
		return a.repeat - b.repeat
	})
	*c = slices.Compact(*c)
}

// String prints the normalised form; parsing it gives the same expression.
func (e *Expression) String() string {
	var b strings.Builder
	if e.weekdays != 0 {
		writeWeekdays(&b, e.weekdays)
		b.WriteByte(' ')
	}
	e.year.write(&b, 4, 1)
	b.WriteByte('-')
	e.month.write(&b, 2, 1)
	b.WriteByte("-~"[btoi(e.fromEnd)])
	e.day.write(&b, 2, 1)
	b.WriteByte(' ')
	e.hour.write(&b, 2, 1)
	b.WriteByte(':')
	e.minute.write(&b, 2, 1)
	b.WriteByte(':')
	if len(e.second) == 1 && e.second[0] == (part{start: 0, stop: -1, repeat: usec}) {
		b.WriteByte('*')
	} else {
		e.second.write(&b, 2, usec)
	}
	if e.zoneName != "" {
		b.WriteByte(' ')
		b.WriteString(e.zoneName)
	}
	return b.String()
}

func btoi(v bool) int {
	if v {
		return 1
	}
	return 0
}

// writeWeekdays prints runs of three and more as ranges.
func writeWeekdays(b *strings.Builder, days uint8) {
	comma := ""
	for i := 0; i < 7; i++ {
		if days&(1<<i) == 0 {
			continue
		}
		last := i
		for last < 6 && days&(1<<(last+1)) != 0 {
			last++
		}
		b.WriteString(comma + weekdays[i][:3])
		switch {
		case last > i+1:
			b.WriteString(".." + weekdays[last][:3])
		case last == i+1:
			b.WriteString("," + weekdays[last][:3])
		}
		comma, i = ",", last
	}
}

func (c chain) write(b *strings.Builder, width, unit int) {
	if len(c) == 0 {
		b.WriteByte('*')
	}
	number := func(n, width int) {
		fmt.Fprintf(b, "%0*d", width, n/unit)
		if n%unit != 0 {
			fmt.Fprintf(b, ".%06d", n%unit)
		}
	}
	for i, p := range c {
		if i > 0 {
			b.WriteByte(',')
		}
		number(p.start, width)
		if p.stop >= 0 {
			b.WriteString("..")
			number(p.stop, width)
		}
		if p.repeat > 0 && (p.stop < 0 || p.repeat != unit) {
			b.WriteByte('/')
			number(p.repeat, 0)
		}
	}
}
