package journal

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// beginnings is one file for all services, of the runs that have begun and written
// nothing yet. A start adds a line to it, which is one system call, and a
// service has no directory and no file "runs" of its own before its first line.
type beginnings struct {
	file *os.File
	size int64 // whole lines only
	// full is the size at which all that it says goes to the services' own files.
	full int64
	// unread is what it says of services that are not loaded.
	unread map[key][]mark
	line   []byte // to be used again
}

const fullBegun = 1 << 20

// openBeginnings opens the file in the directory. What a power cut has left of a last
// line is cut off.
func openBeginnings(dir string) (*beginnings, error) {
	b := &beginnings{full: fullBegun, unread: map[key][]mark{}}
	var err error
	if b.file, err = os.OpenFile(filepath.Join(dir, ".begun"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(b.file)
	if err == nil {
		b.size = int64(bytes.LastIndexByte(data, '\n') + 1)
		err = b.file.Truncate(b.size)
	}
	if err != nil {
		return nil, errors.Join(err, b.file.Close())
	}
	for line := range strings.Lines(string(data[:b.size])) {
		b.read(line)
	}
	return b, nil
}

// read takes in a line: a service and a beginning, or a group that was removed.
func (b *beginnings) read(line string) {
	name, text, _ := strings.Cut(line, " ")
	group, service, one := strings.Cut(strings.TrimSuffix(name, "\n"), "/")
	group, err := url.PathUnescape(group)
	service, err2 := url.PathUnescape(service)
	switch {
	case err != nil || err2 != nil:
	case !one:
		b.forget(group)
	default:
		if m, ok := parseMark(text); ok {
			k := key{group, service}
			b.unread[k] = append(b.unread[k], m)
		}
	}
}

func (b *beginnings) forget(group string) {
	for k := range b.unread {
		if k.group == group {
			delete(b.unread, k)
		}
	}
}

// add says that a run has begun.
func (b *beginnings) add(k key, m *mark) error {
	b.line = append(b.line[:0], url.PathEscape(k.group)...)
	b.line = append(append(b.line, '/'), url.PathEscape(k.service)...)
	b.line = m.appendTo(append(b.line, ' '))
	return b.write()
}

// remove says that nothing is known of a group any more.
func (b *beginnings) remove(group string) error {
	b.forget(group)
	b.line = append(append(b.line[:0], url.PathEscape(group)...), '\n')
	return b.write()
}

// write adds the line, the whole of it or nothing.
func (b *beginnings) write() error {
	if _, err := b.file.WriteAt(b.line, b.size); err != nil {
		return errors.Join(err, b.file.Truncate(b.size))
	}
	b.size += int64(len(b.line))
	return nil
}

// settle writes the beginnings that are in begun only to the service's own file
// "runs". Lines come after it.
func (j *Journal) settle(l *log) error {
	if l.loose == 0 {
		return nil
	}
	var text []byte
	for i := range l.marks[len(l.marks)-l.loose:] {
		text = l.marks[len(l.marks)-l.loose+i].appendTo(text)
	}
	if err := appendTo(l.dir, "runs", text); err != nil {
		return err
	}
	l.loose = 0
	return nil
}

// settleAll empties begun. Where it cannot, it tries again much later. What was
// written is known to be so, if legiond is killed before the end.
func (j *Journal) settleAll() {
	b := j.begun
	b.full = b.size + fullBegun
	for k := range b.unread {
		if _, err := j.load(k.group, k.service); err != nil {
			return
		}
	}
	for _, l := range j.logs {
		if j.settle(l) != nil {
			return
		}
	}
	if b.file.Truncate(0) == nil {
		b.size, b.full = 0, fullBegun
	}
}
