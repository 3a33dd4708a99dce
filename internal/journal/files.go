package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// log is what is known of one service's files.
type log struct {
	key
	dir     string
	streams [2]stream
	// attached: the FIFOs are open. ended: the newest run is over.
	attached, ended, removed bool

	// seqs are the numbers of the files there are, ascending; the last one is
	// written to, and size is what of it is complete lines.
	seqs  []int
	size  int64
	file  *os.File // nil until it is written to
	marks []mark
	// loose is how many of marks, at the end, only begun has.
	loose int

	// pending waits for room on the disk, oldest first; failed says why, lost
	// how many lines were dropped.
	pending      []chunk
	pendingBytes int
	failed       error
	again        time.Time
	lost         int

	followers map[chan struct{}]bool
}

// chunk is some lines, or the beginning of a run between lines.
type chunk struct {
	data []byte
	mark *mark
}

// maxOpen bounds how many log files are open at a time.
const maxOpen = 64

func (l *log) title() string {
	if l.group == l.service {
		return l.group
	}
	return l.group + "/" + l.service
}

func (l *log) path(seq int) string { return filepath.Join(l.dir, fmt.Sprintf("%06d.log", seq)) }

func (l *log) last() int { return l.seqs[len(l.seqs)-1] }

// tell wakes those who follow.
func (l *log) tell() {
	for c := range l.followers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// load finds a service's log in memory or on disk. Nothing is written.
func (j *Journal) load(group, service string) (*log, error) {
	if l := j.logs[key{group, service}]; l != nil {
		return l, nil
	}
	if err := errors.Join(checkName(group), checkName(service)); err != nil {
		return nil, err
	}
	l := &log{key: key{group, service}, dir: j.Dir(group, service), ended: true}
	for i, name := range []string{"stdout", "stderr"} {
		l.streams[i] = stream{log: l, name: name, fd: -1}
	}
	var entries []os.DirEntry
	known := unix.Access(l.dir, unix.F_OK) == nil // as a rule it is not, at a first start
	if known {
		var err error
		if entries, err = os.ReadDir(l.dir); err != nil {
			return nil, fmt.Errorf("cannot read the log of %s: %w", l.title(), err)
		}
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".log"); ok {
			if n, err := strconv.Atoi(name); err == nil && n > 0 {
				l.seqs = append(l.seqs, n)
			}
		}
	}
	slices.Sort(l.seqs)
	if len(l.seqs) == 0 {
		l.seqs = []int{1}
	}
	if known {
		var err error
		if l.size, err = wholeLines(l.path(l.last())); err != nil {
			return nil, fmt.Errorf("cannot read the log of %s: %w", l.title(), err)
		}
		l.marks = readMarks(l.dir)
	}
	for _, m := range j.begun.unread[l.key] {
		if l.run() < m.run {
			l.marks, l.loose = append(l.marks, m), l.loose+1
		}
	}
	delete(j.begun.unread, l.key)
	j.logs[l.key] = l
	return l, nil
}

// wholeLines is the size of a file up to its last newline: a crash may have
// left a piece of a line behind, which the next write overwrites.
func wholeLines(path string) (int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 32<<10)
	for size > 0 {
		from := max(size-int64(len(buf)), 0)
		n, err := f.ReadAt(buf[:size-from], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		size = from
	}
	return 0, nil
}

// store writes lines, or keeps them while that does not work.
func (j *Journal) store(l *log, data []byte) {
	if len(data) == 0 {
		return
	}
	if l.failed == nil {
		if err := j.write(l, data); err != nil {
			j.fail(l, err)
		} else {
			l.tell()
			return
		}
	}
	j.keep(l, data)
}

func (j *Journal) fail(l *log, err error) {
	l.failed = err
	j.failing[l] = true
	l.again = time.Now().Add(j.o.Retry)
	j.closeFile(l)
}

// keep adds lines to what is pending and drops the oldest beyond the bound.
func (j *Journal) keep(l *log, data []byte) {
	const piece = 32 << 10
	if n := len(l.pending); n > 0 && l.pending[n-1].mark == nil && len(l.pending[n-1].data)+len(data) <= piece {
		l.pending[n-1].data = append(l.pending[n-1].data, data...)
	} else {
		l.pending = append(l.pending, chunk{data: bytes.Clone(data)})
	}
	l.pendingBytes += len(data)
	for i := 0; l.pendingBytes > j.o.MaxPending && i < len(l.pending); i++ {
		c := &l.pending[i]
		l.lost += bytes.Count(c.data, []byte{'\n'})
		l.pendingBytes -= len(c.data)
		c.data = nil
	}
	l.pending = slices.DeleteFunc(l.pending, func(c chunk) bool { return c.data == nil && c.mark == nil })
}

// retry tries to write what is pending and returns when to try next, in
// milliseconds; -1 for never.
func (j *Journal) retry() int {
	next := -1
	for l := range j.failing {
		if !time.Now().Before(l.again) {
			j.flush(l)
		}
		if l.failed != nil {
			ms := max(int(time.Until(l.again).Milliseconds())+1, 1)
			if next < 0 || ms < next {
				next = ms
			}
		}
	}
	return next
}

// flush writes what is pending. What was lost is told in a line before it, which
// is written together with the next lines: alone it might fit again and again
// into the last free bytes of the disk.
func (j *Journal) flush(l *log) {
	if l.failed == nil {
		return
	}
	for len(l.pending) > 0 {
		c := l.pending[0]
		data := c.data
		if l.lost > 0 {
			data = fmt.Appendf(nil, "%s stderr F legion: %s lost here, because the log could not be written: %v\n%s",
				time.Now().UTC().Format(timeFormat), count(l.lost, "line"), plainCause(l.failed), data)
		}
		var err error
		if len(data) > 0 {
			err = j.write(l, data)
		}
		if err == nil {
			l.lost = 0
			if c.mark != nil {
				err = j.place(l, c.mark)
			}
		}
		if err != nil {
			j.fail(l, err)
			return
		}
		l.pendingBytes -= len(c.data)
		l.pending = l.pending[1:]
	}
	l.pending, l.failed = nil, nil
	delete(j.failing, l)
	l.tell()
}

// write appends whole lines to the newest file: all of them or none. A full
// disk costs the service its own oldest file first.
func (j *Journal) write(l *log, data []byte) error {
	if l.size > 0 && l.size+int64(len(data)) > j.o.MaxBytes {
		j.rotate(l)
	}
	for {
		err := j.tryWrite(l, data)
		if err == nil || !full(err) || len(l.seqs) < 2 {
			return err
		}
		if e := os.Remove(l.path(l.seqs[0])); e != nil && !errors.Is(e, os.ErrNotExist) {
			return err
		}
		l.seqs = l.seqs[1:]
	}
}

func (j *Journal) tryWrite(l *log, data []byte) error {
	if err := j.settle(l); err != nil {
		return err
	}
	if l.file == nil {
		if err := os.MkdirAll(l.dir, 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(l.path(l.last()), os.O_WRONLY|os.O_CREATE, 0o640)
		if err != nil {
			return err
		}
		l.file = f
		j.open = append(j.open, l)
		if len(j.open) > maxOpen {
			j.closeFile(j.open[0])
		}
	} else if n := len(j.open); j.open[n-1] != l {
		i := slices.Index(j.open, l)
		j.open = append(slices.Delete(j.open, i, i+1), l)
	}
	j.beginNote(l, len(data))
	if _, err := l.file.WriteAt(data, l.size); err != nil {
		_ = l.file.Truncate(l.size) // no half lines
		return err
	}
	l.size += int64(len(data))
	return nil
}

func (j *Journal) closeFile(l *log) {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
	if i := slices.Index(j.open, l); i >= 0 {
		j.open = slices.Delete(j.open, i, i+1)
	}
}

// rotate begins the next file and removes the oldest beyond the bound.
func (j *Journal) rotate(l *log) {
	j.closeFile(l)
	l.seqs = append(l.seqs, l.last()+1)
	l.size = 0
	for len(l.seqs) > j.o.MaxFiles {
		_ = os.Remove(l.path(l.seqs[0])) // if it cannot be removed it is found again by the next load
		l.seqs = l.seqs[1:]
	}
	j.pruneMarks(l)
}
