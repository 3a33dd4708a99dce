package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// readAll merges what is there by time, and then passes on lines as they come.
// However much it is, it holds little of it at a time.
func (j *Journal) readAll(ctx context.Context, group string, services []string, q Query, w io.Writer) error {
	var sources []*source
	defer func() {
		for _, s := range sources {
			s.r.close()
		}
	}()
	for _, name := range services {
		r, err := j.reader(group, name, q)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		sources = append(sources, &source{r: r})
	}
	if len(sources) == 0 {
		return fmt.Errorf("%s has no such run: %w", group, ErrNotFound)
	}
	if q.Follow { // whoever listens learns that there is something to wait for
		if _, err := w.Write(nil); err != nil {
			return err
		}
	}
	if err := merge(sources, q.Tail, w); err != nil || !q.Follow {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shared := &oneAtATime{w: w}
	ends := make(chan error, len(sources))
	for _, s := range sources {
		go func() { ends <- s.r.follow(ctx, shared) }()
	}
	var first error
	for range sources {
		if err := <-ends; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

// merge writes the lines of all in the order of their times, only the last ones
// where last is not negative. Lines of one source stay in its order.
func merge(sources []*source, last int, w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	var kept tail
	for {
		var first *source
		for _, s := range sources {
			line, err := s.line()
			if err != nil {
				return err
			}
			if line != nil && (first == nil || bytes.Compare(stamp(line), stamp(first.lines)) < 0) {
				first = s
			}
		}
		if first == nil {
			break
		}
		line, _ := first.line()
		first.lines = first.lines[len(line):]
		if last >= 0 {
			kept.add(line, last)
		} else if _, err := out.Write(line); err != nil {
			return err
		}
	}
	for _, line := range kept.inOrder() {
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
	return out.Flush()
}

// source is one of the logs that are merged, with the lines that were read of
// it and not yet written.
type source struct {
	r     *reader
	buf   bytes.Buffer
	lines []byte
	over  bool
}

// line is the next one, nil where there is none.
func (s *source) line() ([]byte, error) {
	for len(s.lines) == 0 {
		if s.over {
			return nil, nil
		}
		s.buf.Reset()
		more, err := s.r.step(&s.buf)
		if err != nil {
			return nil, err
		}
		s.lines, s.over = s.buf.Bytes(), !more
	}
	return s.lines[:bytes.IndexByte(s.lines, '\n')+1], nil
}

// tail keeps the last lines of those it gets.
type tail struct {
	lines  [][]byte
	oldest int
}

func (t *tail) add(line []byte, most int) {
	switch {
	case len(t.lines) < most:
		t.lines = append(t.lines, bytes.Clone(line))
	case most > 0:
		t.lines[t.oldest] = append(t.lines[t.oldest][:0], line...)
		t.oldest = (t.oldest + 1) % most
	}
}

func (t *tail) inOrder() [][]byte {
	return append(t.lines[t.oldest:len(t.lines):len(t.lines)], t.lines[:t.oldest]...)
}

func stamp(line []byte) []byte { return line[:min(len(line), timeWidth)] }

type oneAtATime struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *oneAtATime) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.Write(p)
}
