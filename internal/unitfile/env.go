package unitfile

import (
	"fmt"
	"strings"
)

// ParseEnvironmentFile reads an EnvironmentFile= (systemd.exec(5)). The result
// is "NAME=value" in the order of the file; a later assignment takes the place
// of an earlier one. Lines that assign nothing, or to what is no name of a
// variable, are left out.
func ParseEnvironmentFile(data []byte) ([]string, error) {
	r := envReader{text: string(data)}
	for r.next() {
		if !validText(r.key) || !validText(r.value) {
			line := strings.Count(string(data[:len(data)-len(r.text)]), "\n")
			return nil, fmt.Errorf("not valid UTF-8 in the assignment that ends on line %d", max(line, 1))
		}
		if ValidEnvironmentName(r.key) {
			r.out = SetEnvironment(r.out, r.key+"="+r.value)
		}
	}
	return r.out, nil
}

// ValidEnvironmentName says whether s can be the name of a variable: letters,
// digits and underscores, no digit in front.
func ValidEnvironmentName(s string) bool {
	for i, c := range []byte(s) {
		if c != '_' && (c|0x20 < 'a' || c|0x20 > 'z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// SetEnvironment puts an assignment into a list, in the place of an earlier one
// of the same name.
func SetEnvironment(env []string, assignment string) []string {
	name, _, _ := strings.Cut(assignment, "=")
	for i, e := range env {
		if n, _, _ := strings.Cut(e, "="); n == name {
			env[i] = assignment
			return env
		}
	}
	return append(env, assignment)
}

// envReader reads an environment file, one assignment at a time.
type envReader struct {
	text       string
	key, value string
	out        []string
}

func (r *envReader) char() byte {
	c := r.text[0]
	r.text = r.text[1:]
	return c
}

// next reads up to and with the next assignment.
func (r *envReader) next() bool {
	for {
		r.text = strings.TrimLeft(r.text, blank)
		if r.text == "" {
			return false
		}
		if r.text[0] == '#' || r.text[0] == ';' {
			r.comment()
			continue
		}
		end := strings.IndexAny(r.text, "=\n\r")
		if end < 0 {
			return false
		}
		key := strings.TrimRight(r.text[:end], blank)
		stop := r.text[end]
		r.text = r.text[end+1:]
		if stop == '=' {
			r.key = key
			r.value = r.readValue()
			return true
		}
	}
}

// comment passes over a comment, which a backslash at the end of the line
// carries on.
func (r *envReader) comment() {
	for r.text != "" {
		switch r.char() {
		case '\\':
			if r.text != "" {
				r.char()
			}
		case '\n', '\r':
			return
		}
	}
}

// readValue reads the parts of a value, quoted and not, up to the line's end.
func (r *envReader) readValue() string {
	var b strings.Builder
	for r.text != "" {
		switch c := r.char(); c {
		case '\n', '\r':
			return b.String()
		case ' ', '\t':
		case '\'':
			r.single(&b)
		case '"':
			r.double(&b)
		default:
			r.bare(&b, c)
			return b.String()
		}
	}
	return b.String()
}

func (r *envReader) single(b *strings.Builder) {
	for r.text != "" {
		c := r.char()
		if c == '\'' {
			return
		}
		b.WriteByte(c)
	}
}

func (r *envReader) double(b *strings.Builder) {
	for r.text != "" {
		c := r.char()
		if c == '"' {
			return
		}
		if c != '\\' {
			b.WriteByte(c)
			continue
		}
		if r.text == "" {
			return
		}
		switch c = r.char(); {
		case strings.IndexByte("\"\\`$", c) >= 0:
			b.WriteByte(c)
		case c != '\n' && c != '\r':
			b.WriteByte('\\')
			b.WriteByte(c)
		}
	}
}

// bare reads an unquoted value to the end of its line; quotes inside are
// ordinary, blanks at the end are dropped unless they were escaped.
func (r *envReader) bare(b *strings.Builder, c byte) {
	keep := 0
	var text []byte
	for {
		switch {
		case c == '\n' || c == '\r':
			b.Write(text[:keep])
			return
		case c == '\\':
			if r.text == "" {
				b.Write(text)
				return
			}
			if c = r.char(); c != '\n' && c != '\r' {
				text = append(text, c)
			}
			keep = len(text)
		default:
			text = append(text, c)
			if c != ' ' && c != '\t' {
				keep = len(text)
			}
		}
		if r.text == "" {
			b.Write(text[:keep])
			return
		}
		c = r.char()
	}
}

// ExpandArgv replaces environment variables in a command's arguments, as
// systemd.service(5), "Command lines", has it: $NAME as a word of its own is
// split at blanks into none, one or more words, ${NAME} is replaced inside a
// word, and $$ is a dollar sign. What is not set is empty. argv[0] stays one
// word.
func ExpandArgv(argv []string, lookup func(name string) (string, bool)) []string {
	out := make([]string, 0, len(argv))
	for i, a := range argv {
		if i > 0 && len(a) > 1 && a[0] == '$' && a[1] != '{' && a[1] != '$' {
			value, _ := lookup(a[1:])
			ws := Words{Rest: value}
			for {
				w, ok, err := ws.Next("", Relax|Unquote)
				if err != nil || !ok {
					break
				}
				out = append(out, w)
			}
			continue
		}
		out = append(out, expandBraces(a, lookup))
	}
	return out
}

func expandBraces(s string, lookup func(string) (string, bool)) string {
	var b strings.Builder
	for s != "" {
		i := strings.IndexByte(s, '$')
		if i < 0 || i == len(s)-1 {
			break
		}
		b.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexByte(s, '}')
		switch {
		case s[1] == '$':
			b.WriteByte('$')
			s = s[2:]
		case s[1] == '{' && end > 0:
			value, _ := lookup(s[2:end])
			b.WriteString(value)
			s = s[end+1:]
		default:
			b.WriteByte('$')
			s = s[1:]
		}
	}
	return b.String() + s
}
