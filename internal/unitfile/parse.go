// Package unitfile turns the text of systemd unit files into groups. It reads
// no files itself: package unitdir finds them. The syntax is that of
// systemd.syntax(7), the directives are listed in one table (directives.go),
// which docs/UNITS.md is printed from.
package unitfile

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"legion.dev/legion/internal/service"
)

// maxLine is the longest line, continuations included, in bytes.
const maxLine = 1 << 20

const blank = " \t\n\r"

// File is one unit file or drop-in, taken apart but not understood.
type File struct {
	Path    string
	Entries []Entry
	// Warnings are lines that were passed over, with the reason.
	Warnings []service.Warning
}

// Entry is one assignment.
type Entry struct {
	Section, Key, Value string
	File                string
	// Line is where the assignment begins.
	Line int
}

// Error is what makes a unit file unusable as a whole.
type Error struct {
	File string
	Line int // 0: the whole file
	Text string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
}

// Parse takes a unit file apart. Lines that mean nothing are warnings; the
// error is an *Error and means that the file as a whole cannot be used.
func Parse(path string, data []byte) (*File, error) {
	text := strings.TrimPrefix(string(data), "\ufeff")
	f := &File{Path: path, Entries: make([]Entry, 0, min(strings.Count(text, "="), 32))}
	p := parser{file: f}
	pending, start, line := "", 0, 0
	for text != "" {
		var l string
		l, text = cutLine(text)
		line++
		if len(pending)+len(l) > maxLine {
			return nil, &Error{path, line, "line longer than 1 MiB"}
		}
		if trimmed := strings.TrimLeft(l, blank); trimmed != "" && (trimmed[0] == '#' || trimmed[0] == ';') {
			continue // also between continued lines
		}
		if pending == "" {
			start = line
		}
		pending += l
		if endsInBackslash(pending) {
			pending = pending[:len(pending)-1] + " "
			if text != "" {
				continue
			}
		}
		if err := p.line(pending, start); err != nil {
			return nil, err
		}
		pending = ""
	}
	if pending != "" {
		if err := p.line(pending, start); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// cutLine cuts the first line off. A line ends with newline, carriage return,
// NUL, or newline and carriage return in either order.
func cutLine(s string) (string, string) {
	i := strings.IndexAny(s, "\n\r\x00")
	if i < 0 {
		return s, ""
	}
	rest := s[i+1:]
	if c := s[i]; rest != "" && c != 0 && rest[0] != 0 && rest[0] != c && (rest[0] == '\n' || rest[0] == '\r') {
		rest = rest[1:]
	}
	return s[:i], rest
}

func endsInBackslash(s string) bool {
	n := len(s) - len(strings.TrimRight(s, `\`))
	return n%2 == 1
}

type parser struct {
	file    *File
	section string
}

func (p *parser) warn(line int, format string, args ...any) {
	p.file.Warnings = append(p.file.Warnings, service.Warning{File: p.file.Path, Line: line, Text: fmt.Sprintf(format, args...)})
}

// line reads one line, continuations joined.
func (p *parser) line(l string, n int) error {
	l = strings.Trim(l, blank)
	switch {
	case l == "":
		return nil
	case !utf8.ValidString(l):
		p.warn(n, "not valid UTF-8; line ignored")
		return nil
	case l[0] == '[':
		if !strings.HasSuffix(l, "]") || len(l) < 3 {
			return &Error{p.file.Path, n, fmt.Sprintf("section header %q does not end in ]", l)}
		}
		p.section = l[1 : len(l)-1]
		return nil
	case p.section == "":
		p.warn(n, "assignment outside of a section; line ignored")
		return nil
	}
	key, value, ok := strings.Cut(l, "=")
	key = strings.Trim(key, blank)
	switch {
	case strings.HasPrefix(p.section, "X-"):
	case !ok:
		p.warn(n, "no = in %q; line ignored", l)
	case key == "":
		p.warn(n, "no name before =; line ignored")
	default:
		p.file.Entries = append(p.file.Entries, Entry{
			Section: p.section, Key: key, Value: strings.Trim(value, blank), File: p.file.Path, Line: n,
		})
	}
	return nil
}
