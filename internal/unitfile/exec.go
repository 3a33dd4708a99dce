package unitfile

import (
	"fmt"
	"path"
	"strings"

	"legion.dev/legion/internal/service"
)

// ParseExec reads the right side of ExecStart= and its like: one or more
// commands, separated by a semicolon that stands alone. The reset by an empty
// value is the caller's. expand resolves specifiers in one word.
//
// A command that is wrong is passed over where its prefix says to ignore
// failure; else it is an error.
func ParseExec(value string, expand func(string) (string, error)) ([]service.Command, error) {
	ws := Words{Rest: value}
	var out []service.Command
	for {
		cmd, more, err := parseCommand(&ws, expand)
		if err != nil {
			return out, err
		}
		if cmd != nil {
			out = append(out, *cmd)
		}
		if !more {
			return out, nil
		}
	}
}

// parseCommand reads up to the end or a separating semicolon. The command is
// nil where there is none or where a wrong one is to be ignored.
func parseCommand(ws *Words, expand func(string) (string, error)) (cmd *service.Command, more bool, err error) {
	first, ok, err := ws.NextUnit("", Unquote|CUnescape)
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the command in %q: %w", ws.Rest, err)
	}
	if !ok {
		return nil, false, nil
	}
	if first == ";" {
		return nil, true, nil
	}
	c := &service.Command{}
	name, ownArgv0 := prefixes(first, c)
	fail := func(err error) (*service.Command, bool, error) {
		if c.IgnoreFailure {
			return nil, false, nil
		}
		return nil, false, err
	}
	if name, err = expand(name); err != nil {
		return fail(err)
	}
	if err := checkExecutable(name); err != nil {
		return fail(err)
	}
	if !ownArgv0 {
		c.Argv = append(c.Argv, name)
	}
	c.Path = simplify(name)
	more, err = arguments(ws, c, expand)
	if err != nil {
		return fail(err)
	}
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		return fail(fmt.Errorf("%q has no zeroth argument", name))
	}
	return c, more, nil
}

// prefixes takes the special prefixes off an executable's name; see the table
// in systemd.service(5).
func prefixes(s string, c *service.Command) (name string, ownArgv0 bool) {
	ambient := false
	for ; s != ""; s = s[1:] {
		unprivileged := !c.FullPrivileges && !ambient
		switch {
		case s[0] == '-' && !c.IgnoreFailure:
			c.IgnoreFailure = true
		case s[0] == '@' && !ownArgv0:
			ownArgv0 = true
		case s[0] == ':' && !c.NoExpand:
			c.NoExpand = true
		case s[0] == '+' && unprivileged && !c.KeepUser:
			c.FullPrivileges = true
		case s[0] == '!' && unprivileged && !c.KeepUser:
			c.KeepUser = true
		case s[0] == '!' && unprivileged:
			// "!!" is "!" on kernels without ambient capabilities, and
			// nothing on all others.
			c.KeepUser, ambient = false, true
		default:
			return s, ownArgv0
		}
	}
	return "", ownArgv0
}

func checkExecutable(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("no executable is named")
	case strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r == '\\' || r == '"' || r == '\'' || r == 0x7f }) >= 0:
		return fmt.Errorf("executable name %q contains special characters", name)
	case strings.HasSuffix(name, "/"):
		return fmt.Errorf("executable %q is a directory", name)
	case name[0] != '/' && (strings.Contains(name, "/") || name == "." || name == ".." || len(name) > 255):
		return fmt.Errorf("%q is neither an absolute path nor a plain name", name)
	case len(name) > 4095:
		return fmt.Errorf("executable path is longer than 4095 bytes")
	}
	return nil
}

// simplify removes doubled slashes and "/./", but not "..".
func simplify(p string) string {
	if p == "" {
		return ""
	}
	parts := strings.Split(p, "/")
	kept := parts[:0]
	for _, s := range parts {
		if s != "" && s != "." {
			kept = append(kept, s)
		}
	}
	out := strings.Join(kept, "/")
	switch {
	case p[0] == '/':
		return "/" + out
	case out == "":
		return "."
	default:
		return out
	}
}

// arguments reads the words after the executable.
func arguments(ws *Words, c *service.Command, expand func(string) (string, error)) (more bool, err error) {
	for ws.Rest != "" {
		// Only an unquoted semicolon separates; \; is a word. A general
		// reader of words could not tell them from ";" in quotes.
		if rest, ok := cutToken(ws.Rest, ";"); ok {
			ws.Rest = rest
			return true, nil
		}
		if rest, ok := cutToken(ws.Rest, `\;`); ok {
			ws.Rest = rest
			c.Argv = append(c.Argv, ";")
			continue
		}
		w, ok, err := ws.NextUnit("", Unquote|CUnescape)
		if err != nil {
			return false, fmt.Errorf("cannot read the arguments of %s: %w", c.Path, err)
		}
		if !ok {
			break
		}
		if w, err = expand(w); err != nil {
			return false, err
		}
		c.Argv = append(c.Argv, w)
	}
	return false, nil
}

func cutToken(s, token string) (string, bool) {
	rest, ok := strings.CutPrefix(s, token)
	if !ok || rest != "" && strings.IndexByte(blank, rest[0]) < 0 {
		return s, false
	}
	return strings.TrimLeft(rest, blank), true
}

// cleanPath checks and simplifies an absolute path.
func cleanPath(p string) (string, error) {
	if !strings.HasPrefix(p, "/") {
		return "", fmt.Errorf("%q is not an absolute path", p)
	}
	s := simplify(p)
	if s != path.Clean(s) {
		return "", fmt.Errorf("%q contains \"..\"", p)
	}
	return s, nil
}
