package calendar

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
)

// maxParts bounds one list of an expression.
const maxParts = 240

// parse fills in the expression. Where it fails, why says in words what of the
// text is wrong.
func (e *Expression) parse(text string) (why string, err error) {
	s := e.cutZone(text)
	if strings.Trim(s, " ") == "" {
		return "it is empty", ErrExpression
	}
	if long, ok := shorthands[strings.ToLower(s)]; ok {
		s = long
	}
	s, err = e.parseWeekdays(s)
	if err != nil {
		return "the days of the week are wrong", err
	}
	if strings.HasPrefix(s, "@") {
		return "the number after @ is wrong", e.parseEpoch(s[1:])
	}
	if s, err = e.parseDate(s); err != nil {
		return "the date is wrong", err
	}
	return "the time of day is wrong", e.parseTime(s)
}

// cutZone takes the time zone off the end.
func (e *Expression) cutZone(s string) string {
	i := strings.LastIndexByte(s, ' ')
	if i < 0 {
		return s
	}
	name := s[i+1:]
	if strings.EqualFold(name, "UTC") {
		e.zone, e.zoneName = time.UTC, "UTC"
		return s[:i]
	}
	if zone, err := LoadZone(name); err == nil {
		e.zone, e.zoneName = zone, name
		return s[:i]
	}
	return s
}

// parseWeekdays reads "Mon,Wed..Fri" if it is there, and what blanks follow.
func (e *Expression) parseWeekdays(s string) (string, error) {
	from := -1 // the begin of a range whose end is expected
	for first := true; ; first = false {
		day, rest := cutWeekday(s)
		if day < 0 {
			if first {
				return s, nil
			}
			return "", ErrExpression
		}
		if from > day {
			return "", ErrExpression
		}
		low := day
		if from >= 0 {
			low = from
		}
		for d := low; d <= day; d++ {
			e.weekdays |= 1 << d
		}
		inRange := from >= 0
		from = -1
		switch {
		case rest == "" || rest[0] == ' ':
			return strings.TrimLeft(rest, " "), nil
		case rest[0] == ',':
			if rest = rest[1:]; rest == "" || rest[0] == ' ' {
				return strings.TrimLeft(rest, " "), nil
			}
		case inRange:
			return "", ErrExpression
		case strings.HasPrefix(rest, ".."):
			from, rest = day, rest[2:]
		case rest[0] == '-':
			from, rest = day, rest[1:]
		default:
			return "", ErrExpression
		}
		s = rest
	}
}

// cutWeekday reads the name of a day, in full or by three letters; -1 is none.
func cutWeekday(s string) (int, string) {
	for i, name := range weekdays {
		for _, n := range []int{len(name), 3} {
			if len(s) >= n && strings.EqualFold(s[:n], name[:n]) && (len(s) == n || strings.IndexByte("-., ", s[n]) >= 0) {
				return i, s[n:]
			}
		}
	}
	return -1, s
}

// parseEpoch reads the seconds since 1970, which are in no zone but UTC.
func (e *Expression) parseEpoch(s string) error {
	n, err := strconv.ParseUint(s, 10, 63)
	if errors.Is(err, strconv.ErrRange) || n > math.MaxInt32*31556952 {
		return ErrExpressionRange
	}
	if err != nil {
		return ErrExpression
	}
	t := time.Unix(int64(n), 0).UTC()
	one := func(n int) chain { return chain{{start: n, stop: -1}} }
	e.year, e.month, e.day = one(t.Year()), one(int(t.Month())), one(t.Day())
	e.hour, e.minute, e.second = one(t.Hour()), one(t.Minute()), one(t.Second()*usec)
	e.zone, e.zoneName = time.UTC, "UTC"
	return nil
}

// parseDate reads the date if there is one, and gives the rest. A text that
// turns out to be a time is given back whole.
func (e *Expression) parseDate(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	var parts []chain
	t := s
	for {
		c, rest, err := parseChain(t, 1)
		if err != nil {
			return "", err
		}
		parts = append(parts, c)
		switch {
		case len(parts) == 1 && (rest == "" || rest[0] == ':'):
			return s, nil
		case len(parts) > 1 && (rest == "" || rest[0] == ' '):
			e.setDate(parts)
			return strings.TrimLeft(rest, " "), nil
		case rest == "" || len(parts) == 3 || e.fromEnd || rest[0] != '-' && rest[0] != '~':
			return "", ErrExpression
		}
		e.fromEnd = rest[0] == '~'
		t = rest[1:]
	}
}

func (e *Expression) setDate(parts []chain) {
	if len(parts) == 3 {
		e.year = parts[0]
		parts = parts[1:]
	}
	e.month, e.day = parts[0], parts[1]
	century := func(n *int) {
		switch {
		case *n >= 0 && *n < 70:
			*n += 2000
		case *n >= 70 && *n < 100:
			*n += 1900
		}
	}
	for i := range e.year {
		century(&e.year[i].start)
		century(&e.year[i].stop)
	}
}

// parseTime reads hour:minute[:second]; nothing is midnight.
func (e *Expression) parseTime(s string) error {
	zero := chain{{start: 0, stop: -1}}
	e.second = zero
	if s == "" {
		e.hour, e.minute = zero, zero
		return nil
	}
	var err error
	if e.hour, s, err = parseChain(s, 1); err != nil {
		return err
	}
	if s == "" || s[0] != ':' {
		return ErrExpression
	}
	if e.minute, s, err = parseChain(s[1:], 1); err != nil || s == "" {
		return err
	}
	if s[0] != ':' {
		return ErrExpression
	}
	if e.second, s, err = parseChain(s[1:], usec); err != nil {
		return err
	}
	if s != "" {
		return ErrExpression
	}
	return nil
}

// parseChain reads a list of parts in 1/unit. A star stands alone.
func parseChain(s string, unit int) (chain, string, error) {
	if rest, ok := strings.CutPrefix(s, "*"); ok {
		if unit == usec {
			return chain{{start: 0, stop: -1, repeat: usec}}, rest, nil
		}
		return nil, rest, nil
	}
	var out chain
	for {
		p, rest, err := parsePart(s, unit)
		if err != nil {
			return nil, "", err
		}
		if out = append(out, p); len(out) > maxParts {
			return nil, "", ErrExpressionRange
		}
		if rest == "" || rest[0] != ',' {
			return out, rest, nil
		}
		s = rest[1:]
	}
}

func parsePart(s string, unit int) (part, string, error) {
	p := part{stop: -1}
	var err error
	if p.start, s, err = parseNumber(s, unit); err != nil {
		return p, "", err
	}
	if rest, ok := strings.CutPrefix(s, ".."); ok {
		if p.stop, s, err = parseNumber(rest, unit); err != nil {
			return p, "", err
		}
		p.repeat = unit
	}
	if rest, ok := strings.CutPrefix(s, "/"); ok {
		if p.repeat, s, err = parseNumber(rest, unit); err != nil {
			return p, "", err
		}
		if p.repeat == 0 {
			return p, "", ErrExpressionRange
		}
	}
	if s != "" && strings.IndexByte(" ,-~:", s[0]) < 0 {
		return p, "", ErrExpression
	}
	return p, s, nil
}

// parseNumber reads a number in 1/unit. Only seconds have a fraction; what is
// below a microsecond is rounded.
func parseNumber(s string, unit int) (int, string, error) {
	whole, rest := digits(s)
	if whole == "" {
		return 0, "", ErrExpression
	}
	n, err := strconv.ParseInt(whole, 10, 32)
	if err != nil || n > math.MaxInt32/int64(unit) {
		return 0, "", ErrExpressionRange
	}
	value := int(n) * unit
	if unit != usec || !strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "..") {
		return value, rest, nil
	}
	fraction, rest := digits(rest[1:])
	scale := usec
	for i, c := range []byte(fraction) {
		if i == 6 {
			if c >= '5' {
				value++
			}
			break
		}
		scale /= 10
		value += int(c-'0') * scale
	}
	return value, rest, nil
}

// ValidZoneName says whether the text can be the name of a time zone; whether
// there is one of that name is another question.
func ValidZoneName(name string) bool {
	if name == "" || name[0] == '/' || strings.HasSuffix(name, "/") || strings.Contains(name, "//") || strings.Contains(name, "..") {
		return false
	}
	return strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/") == ""
}

// LoadZone finds a time zone by its name in the tz database.
func LoadZone(name string) (*time.Location, error) {
	if !ValidZoneName(name) || name == "Local" {
		return nil, errors.New(strconv.Quote(name) + " is not the name of a time zone")
	}
	return time.LoadLocation(name)
}
