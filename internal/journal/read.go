package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// errEnough ends a read at LimitBytes.
var errEnough = errors.New("enough")

// Read writes stored lines to w, whole and in order. Following, it returns when
// ctx ends, when the log is removed, or, if one run was asked for, when that
// run is over; that is no error. With an empty service the lines of all
// services of the group are merged by time.
func (j *Journal) Read(ctx context.Context, group, service string, q Query, w io.Writer) error {
	if q.LimitBytes > 0 {
		w = &limited{w: w, left: q.LimitBytes}
	}
	services := []string{service}
	if service == "" {
		var err error
		if services, err = j.services(group); err != nil {
			return err
		}
	}
	var err error
	if len(services) == 1 {
		err = j.readOne(ctx, group, services[0], q, w)
	} else {
		err = j.readAll(ctx, group, services, q, w)
	}
	if errors.Is(err, errEnough) || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// services are those of a group that have a log.
func (j *Journal) services(group string) ([]string, error) {
	if err := checkName(group); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var names []string
	for k := range j.logs {
		if k.group == group {
			names = append(names, k.service)
		}
	}
	for k := range j.begun.unread {
		if k.group == group {
			names = append(names, k.service)
		}
	}
	entries, err := os.ReadDir(filepath.Join(j.dir, group))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot read the log of %s: %w", group, err)
	}
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(names, e.Name()) {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s has written no log yet: %w", group, ErrNotFound)
	}
	slices.Sort(names)
	return names, nil
}

func (j *Journal) readOne(ctx context.Context, group, service string, q Query, w io.Writer) error {
	r, err := j.reader(group, service, q)
	if err != nil {
		return err
	}
	defer r.close()
	if !q.Follow {
		return r.copy(w)
	}
	// Whoever listens learns that the log is there before its first line,
	// which may be long in coming.
	if _, err := w.Write(nil); err != nil {
		return err
	}
	return r.follow(ctx, w)
}

// reader is a place in a log from which one caller reads on.
type reader struct {
	j    *Journal
	l    *log
	at   position
	file *os.File // of at.seq
	// run, where not 0, bounds the reader to a run.
	run   uint64
	since []byte
	// until, where not nil, is how far the log went when it was asked for: who
	// does not follow is not held by one that writes faster than it is read.
	until *position
	woken chan struct{}
	buf   []byte
}

// reader finds where to begin.
func (j *Journal) reader(group, service string, q Query) (*reader, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, err := j.load(group, service)
	if err != nil {
		return nil, err
	}
	if len(l.marks) == 0 && l.size == 0 && len(l.seqs) == 1 && l.failed == nil && !l.attached {
		delete(j.logs, l.key) // it was only asked about
		return nil, fmt.Errorf("%s has written no log yet: %w", l.title(), ErrNotFound)
	}
	r := &reader{j: j, l: l, run: q.Run, woken: make(chan struct{}, 1), at: position{seq: l.seqs[0]}}
	if q.Previous {
		if len(l.marks) < 2 {
			return nil, fmt.Errorf("%s has no run before the newest one: %w", l.title(), ErrNotFound)
		}
		r.run = l.marks[len(l.marks)-2].run
	}
	if r.run != 0 {
		i := slices.IndexFunc(l.marks, func(m mark) bool { return m.run == r.run })
		switch {
		case i >= 0 && r.at.before(l.marks[i].position):
			r.at = l.marks[i].position
		case i < 0 && l.run() != r.run:
			return nil, fmt.Errorf("%s has no log of run %d: %w", l.title(), r.run, ErrNotFound)
		case i < 0: // its beginning waits for room on the disk
			r.at = position{l.last(), l.size}
		}
	}
	if !q.Since.IsZero() {
		r.since = q.Since.UTC().AppendFormat(nil, timeFormat)
	}
	if q.Tail >= 0 {
		if r.at, err = r.tail(q.Tail); err != nil {
			return nil, fmt.Errorf("cannot read the log of %s: %w", l.title(), err)
		}
	}
	asked, _ := r.end()
	r.until = &asked
	if l.followers == nil {
		l.followers = make(map[chan struct{}]bool)
	}
	l.followers[r.woken] = true
	return r, nil
}

func (r *reader) close() {
	r.j.mu.Lock()
	delete(r.l.followers, r.woken)
	r.j.mu.Unlock()
	if r.file != nil {
		_ = r.file.Close()
	}
}

// end is where the reader stops for now, and whether that is for good; mu is
// held.
func (r *reader) end() (position, bool) {
	end, final := r.newest()
	if r.until != nil && r.until.before(end) {
		end = *r.until
	}
	return end, final
}

// newest is how far the log goes by now; mu is held.
func (r *reader) newest() (position, bool) {
	here := position{r.l.last(), r.l.size}
	if r.run == 0 {
		return here, r.l.removed
	}
	for i := range r.l.marks {
		if r.l.marks[i].run == r.run && i+1 < len(r.l.marks) {
			return r.l.marks[i+1].position, true
		}
	}
	return here, r.l.removed || r.l.run() != r.run || r.l.ended && r.l.failed == nil
}

// tail goes back n lines from the end, not before at; mu is held.
func (r *reader) tail(n int) (position, error) {
	end, _ := r.end()
	if n == 0 {
		return end, nil
	}
	buf := make([]byte, 64<<10)
	for _, seq := range slices.Backward(r.l.seqs) {
		if seq > end.seq || seq < r.at.seq {
			continue
		}
		f, err := os.Open(r.l.path(seq))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return r.at, err
		}
		from, to := int64(0), end.offset
		if seq == r.at.seq {
			from = r.at.offset
		}
		if seq != end.seq {
			if to, err = f.Seek(0, io.SeekEnd); err != nil {
				f.Close()
				return r.at, err
			}
		}
		at, left, err := lastLines(f, from, to, n, buf)
		f.Close()
		if err != nil {
			return r.at, err
		}
		if left == 0 {
			return position{seq, at}, nil
		}
		n = left
	}
	return r.at, nil
}

// lastLines finds where the last n lines between two offsets begin; left is how
// many there are too few.
func lastLines(f *os.File, from, to int64, n int, buf []byte) (at int64, left int, err error) {
	// The newline that ends the last line is not the beginning of another.
	for pos := to - 1; pos > from; {
		start := max(pos-int64(len(buf)), from)
		part := buf[:pos-start]
		if _, err := f.ReadAt(part, start); err != nil && !errors.Is(err, io.EOF) {
			return 0, n, err
		}
		for i := len(part); ; {
			if i = bytes.LastIndexByte(part[:i], '\n'); i < 0 {
				break
			}
			if n--; n == 0 {
				return start + int64(i) + 1, 0, nil
			}
		}
		pos = start
	}
	if to > from {
		n--
	}
	return from, n, nil
}

// copy writes all there is for now.
func (r *reader) copy(w io.Writer) error {
	for {
		more, err := r.step(w)
		if err != nil || !more {
			return err
		}
	}
}

// follow writes what there is and what comes.
func (r *reader) follow(ctx context.Context, w io.Writer) error {
	r.until = nil
	for {
		r.j.mu.Lock()
		_, final := r.end()
		r.j.mu.Unlock()
		if err := r.copy(w); err != nil || final {
			return err
		}
		select {
		case <-r.woken:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// step writes at most one buffer; false when there is nothing for now.
func (r *reader) step(w io.Writer) (bool, error) {
	to, ok, err := r.advance()
	if err != nil || !ok {
		return false, err
	}
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	n, err := r.file.ReadAt(r.buf[:min(int64(len(r.buf)), to-r.at.offset)], r.at.offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("cannot read the log of %s: %w", r.l.title(), err)
	}
	whole := bytes.LastIndexByte(r.buf[:n], '\n') + 1
	if whole == 0 {
		return false, fmt.Errorf("cannot read the log of %s: %s holds no lines at %d; was it changed by hand?", r.l.title(), r.file.Name(), r.at.offset)
	}
	r.at.offset += int64(whole)
	if data := r.filter(r.buf[:whole]); len(data) > 0 {
		if _, err := w.Write(data); err != nil {
			return false, err
		}
	}
	return true, nil
}

// advance opens the file to read from and says up to where it may be read.
func (r *reader) advance() (to int64, ok bool, err error) {
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	for {
		end, _ := r.end()
		if !r.at.before(end) {
			return 0, false, nil
		}
		if r.file == nil {
			if r.at.seq < r.l.seqs[0] { // removed meanwhile
				r.at = position{seq: r.l.seqs[0]}
			}
			r.file, err = os.Open(r.l.path(r.at.seq))
			if errors.Is(err, os.ErrNotExist) && r.at.seq < end.seq {
				r.at = position{seq: r.at.seq + 1}
				continue
			}
			if errors.Is(err, os.ErrNotExist) {
				return 0, false, nil
			}
			if err != nil {
				return 0, false, fmt.Errorf("cannot read the log of %s: %w", r.l.title(), err)
			}
		}
		if r.at.seq == end.seq {
			return end.offset, true, nil
		}
		st, err := r.file.Stat()
		if err != nil {
			return 0, false, fmt.Errorf("cannot read the log of %s: %w", r.l.title(), err)
		}
		if r.at.offset < st.Size() {
			return st.Size(), true, nil
		}
		_ = r.file.Close()
		r.file = nil
		r.at = position{seq: r.at.seq + 1}
	}
}

// filter leaves out lines before since; once one is later, all are.
func (r *reader) filter(data []byte) []byte {
	for r.since != nil && len(data) > 0 {
		if bytes.Compare(stamp(data), r.since) >= 0 {
			r.since = nil
			break
		}
		data = data[bytes.IndexByte(data, '\n')+1:]
	}
	return data
}

// limited ends after so many bytes.
type limited struct {
	w    io.Writer
	left int64
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.w.Write(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	if err == nil && l.left <= 0 {
		err = errEnough
	}
	return n, err
}
