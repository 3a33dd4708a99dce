package condition

import (
	"cmp"
	"fmt"
	"path"
	"strings"
	"unicode"
)

// operators, the longer ones first.
var operators = []string{"<=", ">=", "==", "!=", "<>", "<", ">", "="}

// operator takes the one at the beginning of a value; empty where there is none.
func operator(value string) (op, rest string) {
	for _, op := range operators {
		if rest, ok := strings.CutPrefix(value, op); ok {
			return op, strings.TrimSpace(rest)
		}
	}
	return "", value
}

// accepts says whether an operator accepts the result of a comparison.
func accepts(op string, result int) bool {
	switch op {
	case "<":
		return result < 0
	case "<=":
		return result <= 0
	case ">":
		return result > 0
	case ">=":
		return result >= 0
	case "!=", "<>":
		return result != 0
	}
	return result == 0
}

// words splits a value; an operator that stands alone belongs to what follows.
func words(value string) []string {
	var out []string
	for _, w := range strings.Fields(value) {
		if n := len(out); n > 0 {
			if op, rest := operator(out[n-1]); op != "" && rest == "" {
				out[n-1] += w
				continue
			}
		}
		out = append(out, w)
	}
	return out
}

// versions looks at a version by every word of a value: a comparison, or else a
// pattern.
func versions(have, value string) (bool, error) {
	all := words(value)
	if len(all) == 0 {
		return false, fmt.Errorf("%q names no version", value)
	}
	for _, w := range all {
		op, want := operator(w)
		if op == "" {
			if ok, err := path.Match(want, have); err != nil || !ok {
				return false, err
			}
		} else if !accepts(op, compareVersions(have, want)) {
			return false, nil
		}
	}
	return true, nil
}

// compareVersions compares numbers as numbers and letters as letters, as the
// UAPI version format does: a number is newer than a word, and what follows ~
// is older than nothing.
func compareVersions(a, b string) int {
	for {
		a, b = strings.TrimLeftFunc(a, separates), strings.TrimLeftFunc(b, separates)
		if x, y := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); x || y {
			if x != y {
				return sign(y, x)
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		x, y := isDigit(rune(a[0])), isDigit(rune(b[0]))
		if x != y {
			return sign(x, y)
		}
		kind := isDigit
		if !x {
			kind = unicode.IsLetter
		}
		var first, second string
		first, a = span(a, kind)
		second, b = span(b, kind)
		if x {
			first, second = strings.TrimLeft(first, "0"), strings.TrimLeft(second, "0")
			if c := cmp.Compare(len(first), len(second)); c != 0 {
				return c
			}
		}
		if c := cmp.Compare(first, second); c != 0 {
			return c
		}
	}
}

func isDigit(r rune) bool   { return r >= '0' && r <= '9' }
func separates(r rune) bool { return r != '~' && !isDigit(r) && !unicode.IsLetter(r) }

// sign is 1 where only the first holds.
func sign(first, second bool) int {
	switch {
	case first == second:
		return 0
	case first:
		return 1
	}
	return -1
}

func span(s string, of func(rune) bool) (head, tail string) {
	i := strings.IndexFunc(s, func(r rune) bool { return !of(r) })
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}
