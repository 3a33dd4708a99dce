// Package calendar is systemd.time(7): spans of time, expressions of calendar
// events, and the instants at which these elapse.
package calendar

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Infinity is a span without end, in any unit.
const Infinity = math.MaxUint64

// Errors of the parsers, to be told apart by errors.Is.
var (
	ErrSyntax = errors.New("not a time span")
	ErrRange  = errors.New("time span out of range")
)

// Units in microseconds. A year has 365.25 days and a month is its twelfth.
const (
	Microsecond uint64 = 1
	Millisecond        = 1000 * Microsecond
	Second             = 1000 * Millisecond
	minute             = 60 * Second
	hour               = 60 * minute
	day                = 24 * hour
	week               = 7 * day
	month              = 2629800 * Second
	year               = 31557600 * Second
)

// unitNames gives each unit's names. Longer names stand before their
// beginnings, since the first match is taken.
var unitNames = []struct {
	name string
	usec uint64 // 0 is a nanosecond
}{
	{"seconds", Second},
	{"second", Second},
	{"sec", Second},
	{"s", Second},
	{"minutes", minute},
	{"minute", minute},
	{"min", minute},
	{"months", month},
	{"month", month},
	{"M", month},
	{"msec", Millisecond},
	{"ms", Millisecond},
	{"m", minute},
	{"hours", hour},
	{"hour", hour},
	{"hr", hour},
	{"h", hour},
	{"days", day},
	{"day", day},
	{"d", day},
	{"weeks", week},
	{"week", week},
	{"w", week},
	{"years", year},
	{"year", year},
	{"y", year},
	{"usec", Microsecond},
	{"us", Microsecond},
	{"\u00b5s", Microsecond},
	{"\u03bcs", Microsecond},
	{"nsec", 0},
	{"ns", 0},
}

const blank = " \t\n\r"

// ParseUsec reads a span; a number without a unit counts in defaultUnit
// microseconds. The result is in microseconds, or Infinity.
func ParseUsec(s string, defaultUnit uint64) (uint64, error) {
	return parse(s, defaultUnit, 1)
}

// ParseNsec is ParseUsec in nanoseconds.
func ParseNsec(s string, defaultUnit uint64) (uint64, error) {
	return parse(s, defaultUnit, 1000)
}

// parse reads a span in ticks, of which perUsec make a microsecond.
func parse(text string, defaultUnit, perUsec uint64) (uint64, error) {
	syntax := func(why string) (uint64, error) {
		return 0, fmt.Errorf("%w: %q: %s", ErrSyntax, text, why)
	}
	s := strings.TrimLeft(text, blank)
	if rest, ok := strings.CutPrefix(s, "infinity"); ok {
		if strings.Trim(rest, blank) != "" {
			return syntax("nothing may follow infinity")
		}
		return Infinity, nil
	}
	var total uint64
	for first := true; ; first = false {
		if s = strings.TrimLeft(s, blank); s == "" {
			if first {
				return syntax("it is empty")
			}
			return total, nil
		}
		if s[0] == '-' {
			return 0, fmt.Errorf("%w: %q is negative", ErrRange, text)
		}
		s = strings.TrimPrefix(s, "+")
		whole, rest := digits(s)
		fraction, dot := "", false
		if rest, dot = strings.CutPrefix(rest, "."); dot {
			if fraction, rest = digits(rest); fraction == "" {
				return syntax("digits must follow the point")
			}
		}
		if whole == "" && !dot {
			return syntax("a number is expected at " + strconv.Quote(s))
		}
		unit, after := cutUnit(strings.TrimLeft(rest, blank), defaultUnit, perUsec)
		if after == rest && rest != "" {
			return syntax("unknown unit at " + strconv.Quote(rest))
		}
		s = after
		var ok bool
		if total, ok = add(total, whole, fraction, unit); !ok {
			return 0, fmt.Errorf("%w: %q", ErrRange, text)
		}
	}
}

func digits(s string) (string, string) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[:n], s[n:]
}

func cutUnit(s string, defaultUnit, perUsec uint64) (uint64, string) {
	for _, u := range unitNames {
		rest, ok := strings.CutPrefix(s, u.name)
		switch {
		case !ok:
		case u.usec > 0:
			return u.usec * perUsec, rest
		case perUsec == 1000:
			return 1, rest
		}
	}
	return defaultUnit, s
}

func add(total uint64, whole, fraction string, unit uint64) (uint64, bool) {
	var n uint64
	if whole != "" {
		i, err := strconv.ParseInt(whole, 10, 64)
		if err != nil {
			return 0, false
		}
		n = uint64(i)
	}
	if n >= Infinity/unit || n*unit >= Infinity-total {
		return 0, false
	}
	total += n * unit
	for _, c := range []byte(fraction) {
		unit /= 10
		d := uint64(c-'0') * unit
		if d >= Infinity-total {
			return 0, false
		}
		total += d
	}
	return total, true
}

// ParseDuration reads a span whose bare numbers are seconds, as the …Sec=
// directives have them. Infinity, and what a time.Duration cannot hold, is
// reported by infinite.
func ParseDuration(s string) (d time.Duration, infinite bool, err error) {
	usec, err := ParseUsec(s, Second)
	if err != nil {
		return 0, false, err
	}
	if usec > math.MaxInt64/1000 {
		return 0, true, nil
	}
	return time.Duration(usec) * time.Microsecond, false, nil
}

var printed = []struct {
	name string
	usec uint64
}{
	{"y", year},
	{"month", month},
	{"w", week},
	{"d", day},
	{"h", hour},
	{"min", minute},
	{"s", Second},
	{"ms", Millisecond},
	{"us", Microsecond},
}

// Format prints a span to the given accuracy, both in microseconds:
// "2h 5min", "1.234s". What is below the accuracy is cut off.
func Format(usec, accuracy uint64) string {
	if usec == Infinity {
		return "infinity"
	}
	accuracy = max(accuracy, 1)
	usec -= usec % accuracy
	var out []string
	for _, u := range printed {
		if usec < u.usec || usec == 0 {
			continue
		}
		n, rest := usec/u.usec, usec%u.usec
		if usec < minute && rest > 0 {
			text := strconv.FormatFloat(float64(usec)/float64(u.usec), 'f', -1, 64)
			return strings.Join(append(out, text+u.name), " ")
		}
		out = append(out, strconv.FormatUint(n, 10)+u.name)
		usec = rest
	}
	if len(out) == 0 {
		return "0"
	}
	return strings.Join(out, " ")
}

// FormatDuration prints a duration to the second, or to the millisecond below a
// minute.
func FormatDuration(d time.Duration) string {
	d = max(d, 0)
	accuracy := Second
	if d < time.Minute {
		accuracy = Millisecond
	}
	return Format(uint64(d.Microseconds()), accuracy)
}
