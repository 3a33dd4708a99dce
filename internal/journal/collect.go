package journal

import (
	"bytes"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// timeFormat has a fixed width, so that times compare as text.
const (
	timeFormat = "2006-01-02T15:04:05.000000000Z"
	timeWidth  = len(timeFormat)
)

// maxLine is the longest piece of a line; longer lines are stored in pieces
// marked P, as containerd does.
const maxLine = 16 << 10

// stream is one of a service's two FIFOs.
type stream struct {
	log  *log
	name string // "stdout", "stderr"
	path string
	fd   int // -1 when closed
	// partial is the beginning of a line whose end has not come yet.
	partial []byte
}

// collect is the goroutine that reads every FIFO of the host.
func (j *Journal) collect() {
	defer close(j.done)
	events := make([]unix.EpollEvent, 64)
	timeout := -1
	for {
		n, err := unix.EpollWait(j.epoll, events, timeout)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		j.mu.Lock()
		if j.closed {
			j.mu.Unlock()
			return
		}
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == j.wake {
				var b [8]byte
				_, _ = unix.Read(j.wake, b[:])
			} else if s := j.byFD[int(ev.Fd)]; s != nil {
				j.read(s)
			}
		}
		timeout = j.retry()
		j.mu.Unlock()
	}
}

// read takes one buffer from a FIFO; false if there was nothing.
func (j *Journal) read(s *stream) bool {
	n, err := unix.Read(s.fd, j.buf)
	if err != nil || n <= 0 {
		return errors.Is(err, unix.EINTR)
	}
	j.split(s, j.buf[:n])
	return true
}

// drain takes what is in a FIFO now. The bound is for a writer that never ends.
func (j *Journal) drain(s *stream) {
	for range 16 {
		if s.fd < 0 || !j.read(s) {
			return
		}
	}
}

// split cuts what was read into lines and stores them.
func (j *Journal) split(s *stream, data []byte) {
	now := time.Now().UTC().AppendFormat(make([]byte, 0, timeWidth), timeFormat)
	j.out = j.out[:0]
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		piece := data
		if i >= 0 {
			piece = data[:i]
		}
		// Fill up the line that was begun.
		for len(s.partial)+len(piece) > maxLine {
			room := maxLine - len(s.partial)
			j.line(s, now, 'P', piece[:room])
			piece = piece[room:]
		}
		if i < 0 {
			s.partial = append(s.partial, piece...)
			break
		}
		j.line(s, now, 'F', piece)
		data = data[i+1:]
		if len(j.out) > 128<<10 {
			j.store(s.log, j.out)
			j.out = j.out[:0]
		}
	}
	j.store(s.log, j.out)
}

// line adds a stored line to out: what was begun before, and rest.
func (j *Journal) line(s *stream, now []byte, flag byte, rest []byte) {
	j.out = append(j.out, now...)
	j.out = append(j.out, ' ')
	j.out = append(j.out, s.name...)
	j.out = append(j.out, ' ', flag, ' ')
	j.out = append(j.out, s.partial...)
	j.out = append(j.out, rest...)
	j.out = append(j.out, '\n')
	s.partial = s.partial[:0]
	if cap(s.partial) > 1<<10 {
		s.partial = nil
	}
}

// finishLine stores a line whose end will not come any more.
func (j *Journal) finishLine(s *stream) { j.finishPiece(s, 'F') }

func (j *Journal) finishPiece(s *stream, flag byte) {
	if len(s.partial) == 0 {
		return
	}
	j.out = j.out[:0]
	j.line(s, time.Now().UTC().AppendFormat(nil, timeFormat), flag, nil)
	j.store(s.log, j.out)
}
