package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// position is a place in a service's files.
type position struct {
	seq    int
	offset int64
}

func (p position) before(q position) bool {
	return p.seq < q.seq || p.seq == q.seq && p.offset < q.offset
}

// mark tells where the output of a run begins.
type mark struct {
	run   uint64
	began time.Time
	position
}

// maxMarks bounds the file "runs" for a service that is restarted again and
// again and writes little.
const maxMarks = 1000

// run is the newest run, 0 for none.
func (l *log) run() uint64 {
	for i := len(l.pending) - 1; i >= 0; i-- {
		if m := l.pending[i].mark; m != nil {
			return m.run
		}
	}
	if n := len(l.marks); n > 0 {
		return l.marks[n-1].run
	}
	return 0
}

// mark notes that a run begins here.
func (j *Journal) mark(l *log, run uint64) {
	m := &mark{run: run, began: time.Now()}
	if l.failed == nil {
		err := j.place(l, m)
		if err == nil {
			return
		}
		j.fail(l, err)
	}
	l.pending = append(l.pending, chunk{mark: m})
}

// place gives a mark its position and writes it down.
func (j *Journal) place(l *log, m *mark) error {
	m.position = position{l.last(), l.size}
	l.marks, l.loose = append(l.marks, *m), l.loose+1
	if j.begun.add(l.key, m) != nil {
		if err := j.settle(l); err != nil {
			l.marks, l.loose = l.marks[:len(l.marks)-1], l.loose-1
			return err
		}
	}
	if j.begun.size > j.begun.full {
		j.settleAll()
	}
	if len(l.marks) > maxMarks {
		j.pruneMarks(l)
	}
	return nil
}

// appendTo adds lines to a file of a directory, both of which it makes where
// they are not there.
func appendTo(dir, name string, lines []byte) error {
	path := dir + "/" + name
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_CLOEXEC
	fd, err := unix.Open(path, flags, 0o640)
	if errors.Is(err, unix.ENOENT) {
		if err := makeDir(dir); err != nil {
			return err
		}
		fd, err = unix.Open(path, flags, 0o640)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	n, err := unix.Write(fd, lines)
	if e := unix.Close(fd); err == nil {
		err = e
	}
	if err == nil && n < len(lines) {
		err = unix.ENOSPC
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// appendTo adds the mark as a line.
func (m *mark) appendTo(b []byte) []byte {
	b = append(strconv.AppendUint(b, m.run, 10), ' ')
	b = append(m.began.UTC().AppendFormat(b, timeFormat), ' ')
	b = append(strconv.AppendInt(b, int64(m.seq), 10), ' ')
	return append(strconv.AppendInt(b, m.offset, 10), '\n')
}

func parseMark(line string) (m mark, ok bool) {
	var began string
	if n, err := fmt.Sscanf(line, "%d %s %d %d\n", &m.run, &began, &m.seq, &m.offset); n != 4 || err != nil {
		return m, false
	}
	var err error
	m.began, err = time.Parse(timeFormat, began)
	return m, err == nil
}

// pruneMarks forgets runs whose files are gone, but for the one whose end is
// still there.
func (j *Journal) pruneMarks(l *log) {
	from := 0
	for i := range l.marks {
		if l.marks[i].seq < l.seqs[0] {
			from = i
		}
	}
	from = max(from, len(l.marks)-maxMarks/2)
	if from == 0 {
		return
	}
	l.marks = append([]mark(nil), l.marks[from:]...)
	l.loose = min(l.loose, len(l.marks))
	var text []byte
	for i := range l.marks {
		text = l.marks[i].appendTo(text)
	}
	// If this fails the old file says more than is true, and no harm is done.
	path := filepath.Join(l.dir, "runs")
	if os.WriteFile(path+".new", text, 0o640) == nil && os.Rename(path+".new", path) == nil {
		l.loose = 0
	}
}

// readMarks reads the file "runs"; a broken line is left out.
func readMarks(dir string) []mark {
	data, err := os.ReadFile(filepath.Join(dir, "runs"))
	if err != nil {
		return nil
	}
	var out []mark
	for line := range strings.Lines(string(data)) {
		m, ok := parseMark(line)
		if !ok {
			continue
		}
		if n := len(out); n > 0 && m.before(out[n-1].position) {
			continue
		}
		out = append(out, m)
	}
	return out
}
