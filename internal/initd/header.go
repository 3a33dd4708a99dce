package initd

import "strings"

// header is what the comments of a script say.
type header struct {
	// lsb: it has a header of the LSB.
	lsb                bool
	short, description string
	provides           []string
	// startAfter is Required-Start:, Should-Start: and X-Start-After:,
	// startBefore X-Start-Before:.
	startAfter, startBefore []string
	// pidFile is the "# pidfile:" of chkconfig(8).
	pidFile string
	// reload: the usage text offers it.
	reload bool
}

// parse reads a script's comments.
func parse(text string) *script {
	var h header
	const (
		normal = iota
		lsb
		usage
	)
	state, key := normal, ""
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimRight(line, " \t\r")
		switch {
		case state == lsb:
			if line == "### END INIT INFO" {
				state = normal
				continue
			}
			key = h.lsbLine(line, key)
			continue
		case line == "### BEGIN INIT INFO":
			state, key, h.lsb = lsb, "", true
			continue
		case strings.HasPrefix(line, "#"):
			h.comment(strings.TrimSpace(line[1:]))
			continue
		}
		if state == usage || strings.Contains(strings.ToLower(line), "usage") {
			state = normal
			if offersReload(line) {
				h.reload = true
			} else if strings.HasSuffix(line, `\`) {
				state = usage // it goes on in the next line
			}
		}
	}
	return &script{header: h}
}

// comment reads a line outside of the LSB's header.
func (h *header) comment(line string) {
	if name, ok := cutField(line, "pidfile"); ok && strings.HasPrefix(name, "/") {
		h.pidFile = name
	}
	if d, ok := cutField(line, "description"); ok && h.description == "" {
		h.description = strings.TrimSpace(strings.TrimSuffix(d, `\`))
	}
}

// cutField takes the value of "key: value", whatever the case of the key.
func cutField(line, key string) (string, bool) {
	name, value, ok := strings.Cut(line, ":")
	return strings.TrimSpace(value), ok && strings.EqualFold(strings.TrimSpace(name), key)
}

// lsbLine reads a line of the LSB's header and gives the key that the next line
// may go on with: only a description has more than one.
func (h *header) lsbLine(line, key string) string {
	rest, ok := strings.CutPrefix(line, "#")
	if !ok {
		return ""
	}
	if key == "description" && (strings.HasPrefix(rest, "\t") || strings.HasPrefix(rest, "  ")) && !startsField(rest) {
		h.description = strings.TrimSpace(h.description + " " + strings.TrimSpace(rest))
		return key
	}
	name, value, ok := strings.Cut(strings.TrimSpace(rest), ":")
	if !ok {
		return ""
	}
	name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
	switch name {
	case "provides":
		h.provides = append(h.provides, strings.Fields(value)...)
	case "required-start", "should-start", "x-start-after":
		h.startAfter = append(h.startAfter, strings.Fields(value)...)
	case "x-start-before":
		h.startBefore = append(h.startBefore, strings.Fields(value)...)
	case "short-description":
		h.short = value
	case "description":
		h.description = value
	}
	return name
}

// startsField says whether an indented line of the header begins a new field all
// the same: authors align them.
func startsField(line string) bool {
	name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
	switch strings.ToLower(strings.TrimSpace(name)) {
	case "provides", "required-start", "required-stop", "should-start", "should-stop", "default-start", "default-stop", "short-description", "x-start-before", "x-start-after", "x-stop-after", "x-interactive":
		return ok
	}
	return false
}

// offersReload says whether a line of usage such as "{start|stop|reload}" names
// the verb.
func offersReload(line string) bool {
	line = strings.ToLower(line)
	for rest := line; ; {
		i := strings.Index(rest, "reload")
		if i < 0 {
			return false
		}
		before, after := rest[:i], rest[i+len("reload"):]
		if (strings.HasSuffix(before, "{") || strings.HasSuffix(before, "|")) && (after == "" || strings.IndexByte(`|}"`, after[0]) >= 0) {
			return true
		}
		rest = after
	}
}
