package unitfile

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Errors of the parsers of values, to be told apart by errors.Is.
var (
	ErrInvalid = errors.New("invalid value")
	ErrRange   = errors.New("value out of range")
	ErrOrder   = errors.New("soft limit above the hard limit")
)

func invalid(what, s string) error    { return fmt.Errorf("%w: %q is not %s", ErrInvalid, s, what) }
func outOfRange(what, s string) error { return fmt.Errorf("%w: %s %q", ErrRange, what, s) }

// ParseBool reads a boolean of systemd.syntax(7).
func ParseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, invalid("a boolean (yes or no)", s)
}

// number reads an integer in base 10, or with a prefix 0x, 0, 0o or 0b.
func number(s string) (negative bool, n uint64, err error) {
	t := strings.TrimLeft(s, blank)
	if t != "" && (t[0] == '-' || t[0] == '+') {
		negative = t[0] == '-'
		t = t[1:]
	}
	if t == "" || strings.IndexByte("0123456789", t[0]) < 0 || strings.Contains(t, "_") {
		return false, 0, invalid("a number", s)
	}
	n, err = strconv.ParseUint(t, 0, 64)
	if errors.Is(err, strconv.ErrRange) {
		return negative, 0, outOfRange("number", s)
	} else if err != nil {
		return negative, 0, invalid("a number", s)
	}
	return negative, n, nil
}

// ParseInt reads a signed integer of the given size in bits.
func ParseInt(s string, bits int) (int64, error) {
	negative, n, err := number(s)
	if err != nil {
		return 0, err
	}
	limit := uint64(1) << (bits - 1)
	switch {
	case negative && n <= limit:
		return -int64(n), nil
	case !negative && n < limit:
		return int64(n), nil
	}
	return 0, outOfRange("number", s)
}

// ParseUint reads an unsigned integer of the given size in bits.
func ParseUint(s string, bits int) (uint64, error) {
	negative, n, err := number(s)
	if err != nil {
		return 0, err
	}
	if negative && n != 0 || bits < 64 && n >= 1<<bits {
		return 0, outOfRange("number", s)
	}
	return n, nil
}

// ParseMode reads an access mode in octal.
func ParseMode(s string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimLeft(s, blank), 8, 32)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && n > 0o7777:
		return 0, outOfRange("access mode", s)
	case err != nil:
		return 0, invalid("an access mode in octal", s)
	}
	return uint32(n), nil
}

// ParseNice reads a nice level, -20 to 19.
func ParseNice(s string) (int, error) {
	n, err := ParseInt(s, 32)
	if err != nil {
		return 0, err
	}
	if n < -20 || n > 19 {
		return 0, outOfRange("nice level", s)
	}
	return int(n), nil
}

var sizeSuffixes = []string{"E", "P", "T", "G", "M", "K", "B", ""}

// ParseSize reads a number of bytes with suffixes to the base 1024 or 1000:
// "4G", "1.5M", "3G 500M". Units go from large to small.
func ParseSize(s string, base uint64) (uint64, error) {
	const what = "a size in bytes"
	var total uint64
	at := 0
	for p := s; ; {
		p = strings.TrimLeft(p, blank)
		if strings.HasPrefix(p, "-") {
			return 0, outOfRange("size", s)
		}
		p = strings.TrimPrefix(p, "+")
		whole, rest := cutDigits(p)
		if whole == "" {
			return 0, invalid(what, s)
		}
		fraction := ""
		if r, ok := strings.CutPrefix(rest, "."); ok {
			fraction, rest = cutDigits(r)
		}
		rest = strings.TrimLeft(rest, blank)
		i := at
		for i < len(sizeSuffixes) && !strings.HasPrefix(rest, sizeSuffixes[i]) {
			i++
		}
		if i == len(sizeSuffixes) {
			return 0, invalid(what, s)
		}
		n, ok := scale(whole, fraction, base, max(0, 6-i))
		if !ok || n > math.MaxUint64-total {
			return 0, outOfRange("size", s)
		}
		total += n
		at = i + 1
		if p = rest[len(sizeSuffixes[i]):]; p == "" {
			return total, nil
		}
	}
}

func cutDigits(s string) (string, string) {
	rest := strings.TrimLeft(s, "0123456789")
	return s[:len(s)-len(rest)], rest
}

// scale gives whole.fraction times base to the power; false on overflow.
func scale(whole, fraction string, base uint64, power int) (uint64, bool) {
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil {
		return 0, false
	}
	factor := uint64(1)
	for range power {
		factor *= base
	}
	part := 0.0
	if fraction != "" {
		part, _ = strconv.ParseFloat("0."+fraction, 64)
	}
	more := uint64(part * float64(factor))
	if n > math.MaxUint64/factor || n*factor > math.MaxUint64-more {
		return 0, false
	}
	return n*factor + more, true
}
