// Package envfile reads the files of a pod's fileKeyRef: lines NAME='value', a
// narrow part of what a POSIX shell reads (KEP-3721, "Use the contents of a file
// as environment variables").
package envfile

import (
	"errors"
	"fmt"
	"strings"
)

// Value finds a variable: its first assignment counts. ok is false where there is
// none, or an empty one. What comes before it must be well formed, as the kubelet
// has it (pkg/kubelet/util/env): blank lines, comments from # on, and assignments
// whose value stands in single quotes right behind the "=" and may go over
// several lines. One with a blank in that place is of nothing.
func Value(text, name string) (value string, ok bool, err error) {
	r := reader{rest: text}
	for r.more() {
		line := strings.TrimLeft(r.next(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		at := r.line
		who, what, err := r.assignment(line)
		if err != nil {
			return "", false, fmt.Errorf("line %d: %w", at, err)
		}
		if who == name {
			if strings.Contains(what, "\x00") {
				return "", false, fmt.Errorf("line %d: a value cannot hold a zero byte", at)
			}
			return what, what != "", nil
		}
	}
	return "", false, nil
}

// reader goes through a text by lines.
type reader struct {
	rest string
	line int
}

func (r *reader) more() bool { return r.rest != "" }

func (r *reader) next() string {
	line, rest, _ := strings.Cut(r.rest, "\n")
	r.rest = rest
	r.line++
	return strings.TrimSuffix(line, "\r")
}

// assignment takes the lines of one, of which line is the first.
func (r *reader) assignment(line string) (name, value string, err error) {
	name, rest, ok := strings.Cut(line, "=")
	switch {
	case !ok:
		return "", "", errors.New("there is no = in it")
	case name == "":
		return "", "", errors.New("there is no name before the =")
	case strings.TrimRight(name, " \t") != name:
		return "", "", errors.New("there is a blank before the =")
	case strings.TrimLeft(rest, " \t") != rest:
		return name, "", nil
	case !strings.HasPrefix(rest, "'"):
		return "", "", errors.New("the value is not in single quotes")
	}
	value, after, closed := strings.Cut(rest[1:], "'")
	for !closed {
		if !r.more() {
			return "", "", errors.New("the quote is not closed")
		}
		var part string
		part, after, closed = strings.Cut(r.next(), "'")
		value += "\n" + part
	}
	if after = strings.TrimLeft(after, " \t"); after != "" && after[0] != '#' {
		return "", "", errors.New("something stands behind the value")
	}
	return name, value, nil
}
