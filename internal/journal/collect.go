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

// maxOut bounds what is stored at a time.
const maxOut = 128 << 10

// stream is one of a service's two FIFOs. What has been stored of it is taken
// out; a line whose end has not come yet stays in it.
type stream struct {
	log  *log
	name string // "stdout", "stderr"
	fd   int    // -1 when closed
}

// collect is the goroutine that reads every FIFO of the host. It is told of each
// write, not of what is still there: a line that has begun is left alone.
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
		busy := j.busy
		j.busy = nil
		for _, s := range busy {
			j.collectFrom(s)
		}
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == j.wake {
				var b [8]byte
				_, _ = unix.Read(j.wake, b[:])
			} else if s := j.byFD[int(ev.Fd)]; s != nil {
				j.collectFrom(s)
			}
		}
		timeout = j.retry()
		if len(j.busy) > 0 {
			timeout = 0
		}
		j.mu.Unlock()
	}
}

// collectFrom takes what is in a FIFO now. One whose writer never ends gets its
// turn again after the others.
func (j *Journal) collectFrom(s *stream) {
	if j.drain(s) {
		j.busy = append(j.busy, s)
	}
}

// drain takes the whole lines that are in a FIFO now; true if it had to leave
// some.
func (j *Journal) drain(s *stream) bool {
	for range 16 {
		if s.fd < 0 || !j.read(s, false) {
			return false
		}
	}
	return true
}

// read stores one buffer of what is in a FIFO, and takes it out; false if there
// was nothing to store. rest is for a line whose end will not come any more.
func (j *Journal) read(s *stream, rest bool) bool {
	n, err := j.peek(s.fd)
	if err != nil {
		return errors.Is(err, unix.EINTR)
	}
	used := j.split(s, j.buf[:n])
	if used == 0 && n > 0 && (rest || crowded(s.fd)) {
		flag := byte('P')
		if rest {
			flag = 'F'
		}
		j.line(s, stampNow(), flag, j.buf[:n])
		used = n
	}
	if used == 0 {
		return false
	}
	j.move(s, j.buf[:used], j.out)
	return true
}

// peek copies to buf what is in a FIFO and leaves it there (tee(2)).
func (j *Journal) peek(fd int) (int, error) {
	n, err := unix.Tee(fd, j.copies[1], len(j.buf), unix.SPLICE_F_NONBLOCK)
	if err != nil {
		return 0, err
	}
	return int(n), readFull(j.copies[0], j.buf[:n])
}

// crowded says whether a FIFO has no room for its writer.
func crowded(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	_, err := unix.Poll(p, 0)
	return err == nil && p[0].Revents&unix.POLLOUT == 0
}

// take removes from a FIFO what begins it.
func (j *Journal) take(fd, n int) error { return readFull(fd, j.buf[:n]) }

func readFull(fd int, buf []byte) error {
	for len(buf) > 0 {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("the pipe has ended")
		}
		buf = buf[max(n, 0):]
	}
	return nil
}

func stampNow() []byte {
	return time.Now().UTC().AppendFormat(make([]byte, 0, timeWidth), timeFormat)
}

// split cuts data into lines, as far as they are whole or too long, and leaves
// in out what is to be stored; it says how much of data that is.
func (j *Journal) split(s *stream, data []byte) (used int) {
	now := stampNow()
	j.out = j.out[:0]
	for len(j.out) < maxOut {
		i := bytes.IndexByte(data[used:min(len(data), used+maxLine+1)], '\n')
		switch {
		case i >= 0:
			j.line(s, now, 'F', data[used:used+i])
			used += i + 1
		case len(data)-used > maxLine:
			j.line(s, now, 'P', data[used:used+maxLine])
			used += maxLine
		default:
			return used
		}
	}
	return used
}

// line adds a stored line to out.
func (j *Journal) line(s *stream, now []byte, flag byte, text []byte) {
	j.out = append(j.out, now...)
	j.out = append(j.out, ' ')
	j.out = append(j.out, s.name...)
	j.out = append(j.out, ' ', flag, ' ')
	j.out = append(j.out, text...)
	j.out = append(j.out, '\n')
}

// Write stores lines that a service has said in another way than by its FIFOs.
func (j *Journal) Write(group, service, text string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	l, err := j.load(group, service)
	if err != nil {
		return err
	}
	s := &stream{log: l, name: "stderr", fd: -1}
	for data := append([]byte(text), '\n'); len(data) > 0; {
		data = data[j.split(s, data):]
		j.store(l, j.out)
	}
	return nil
}
