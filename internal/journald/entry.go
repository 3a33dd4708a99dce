package journald

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// entry is what is kept of an entry's fields (systemd.journal-fields(7)).
type entry struct {
	message, identifier string
	priority            int
}

// info is the priority of what does not say how urgent it is.
const info = 6

// entries reads a datagram: fields as NAME=value in a line or, where the value may
// hold anything, as NAME in a line, the value's length in eight bytes with the
// lowest first, the value and a line feed. An empty line ends an entry, and what
// comes after a field that is not understood is left out.
func entries(data []byte) []entry {
	var out []entry
	e := entry{priority: info}
	end := func() {
		if e.message != "" {
			out = append(out, e)
		}
		e = entry{priority: info}
	}
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte{'\n'})
		name, value, plain := bytes.Cut(line, []byte{'='})
		switch {
		case len(line) == 0:
			end()
			data = rest
			continue
		case line[0] == '#' || line[0] == '.': // a remark; a word to the journal itself
			data = rest
			continue
		case !plain:
			if len(rest) < 8 {
				data = nil
				continue
			}
			n := binary.LittleEndian.Uint64(rest)
			if rest = rest[8:]; n >= uint64(len(rest)) || rest[n] != '\n' {
				data = nil
				continue
			}
			value, rest = rest[:n], rest[n+1:]
		}
		e.set(string(name), string(value))
		data = rest
	}
	end()
	return out
}

func (e *entry) set(name, value string) {
	switch name {
	case "MESSAGE":
		e.message = value
	case "SYSLOG_IDENTIFIER":
		e.identifier = value
	case "PRIORITY":
		if len(value) == 1 && value[0] >= '0' && value[0] <= '7' {
			e.priority = int(value[0] - '0')
		}
	}
}

// lines are those of the entry's message, each with its priority as sd-daemon(3)
// has it and with who has said it, as on /dev/log.
func (e entry) lines(pid int) []string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimRight(e.message, "\n"), "\n") {
		if line != "" {
			out = append(out, line)
		}
	}
	for i, line := range out {
		if e.identifier != "" {
			line = e.identifier + "[" + strconv.Itoa(pid) + "]: " + line
		}
		out[i] = fmt.Sprintf("<%d>%s", e.priority, line)
	}
	return out
}

// header is what a stream begins with, a line each (sd_journal_stream_fd(3)).
type header int

const (
	identifier header = iota
	unit
	priority
	levelPrefix
	toSyslog
	toKmsg
	toConsole
	headerLines int = iota
)

// streamEntry is a line of a stream with that header.
func streamEntry(head []string, line string) entry {
	e := entry{identifier: head[identifier], message: line, priority: info}
	e.set("PRIORITY", head[priority])
	if head[levelPrefix] != "0" && len(line) >= 3 && line[0] == '<' && line[1] >= '0' && line[1] <= '7' && line[2] == '>' {
		e.priority, e.message = int(line[1]-'0'), line[3:]
	}
	return e
}
