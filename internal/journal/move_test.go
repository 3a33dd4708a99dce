package journal

import (
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKilledInAMove: wherever legiond is killed between a FIFO and a file, each
// line is stored, and once.
func TestKilledInAMove(t *testing.T) {
	begin := func(j *Journal, s *stream, data []byte) {
		j.moving = &move{Group: s.log.group, Service: s.log.service, Stream: s.name, Bytes: len(data), Sum: crc32.ChecksumIEEE(data)}
	}
	for name, killed := range map[string]func(j *Journal, s *stream, data, lines []byte){
		"before it": func(*Journal, *stream, []byte, []byte) {},
		"after the note": func(j *Journal, s *stream, data, lines []byte) {
			begin(j, s, data)
			j.beginNote(s.log, len(lines))
		},
		"in the write": func(j *Journal, s *stream, data, lines []byte) {
			begin(j, s, data)
			j.beginNote(s.log, len(lines))
			// The first line is whole.
			if _, err := s.log.file.WriteAt(lines[:len(lines)-2], s.log.size); err != nil {
				t.Error(err)
			}
		},
		"after the write": func(j *Journal, s *stream, data, lines []byte) {
			begin(j, s, data)
			j.store(s.log, lines)
		},
		"after it was taken out": func(j *Journal, s *stream, data, lines []byte) {
			begin(j, s, data)
			j.store(s.log, lines)
			if err := j.take(s.fd, len(data)); err != nil {
				t.Error(err)
			}
		},
		"after it": func(j *Journal, s *stream, data, lines []byte) { j.move(s, data, lines) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, run := t.TempDir(), t.TempDir()
			j := open(t, dir, Options{RunDir: run})
			d := attach(t, j, "a", "a", 1)
			f := follow(t, j, "a", "a", Query{Tail: -1})
			d.print("same\nsame\n")
			f.want("same", "same")

			j.mu.Lock() // the collector stands still
			d.print("same\nsame\nbegun ")
			s := &j.logs[key{"a", "a"}].streams[0]
			n, err := j.peek(s.fd)
			if err != nil {
				t.Fatal(err)
			}
			used := j.split(s, j.buf[:n])
			killed(j, s, append([]byte(nil), j.buf[:used]...), append([]byte(nil), j.out...))
			j.closed = true // as if by SIGKILL
			j.mu.Unlock()
			j.poke()
			<-j.done

			again := open(t, dir, Options{RunDir: run})
			attach(t, again, "a", "a", 1)
			d.print("and ended\n")
			follow(t, again, "a", "a", Query{Tail: -1}).want("same", "same", "same", "same", "begun and ended")
		})
	}
}

// TestBegunLine: a line that has begun is left where it is, unless its writer
// has no room for the rest or there will be none.
func TestBegunLine(t *testing.T) {
	if os.Getpagesize() != 4096 {
		t.Skip("the smallest FIFO is larger here")
	}
	j := open(t, t.TempDir(), Options{})
	d := attach(t, j, "a", "a", 1)
	fd := int(d.out.Fd())
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	f := follow(t, j, "a", "a", Query{Tail: -1})
	long := strings.Repeat("x", 10000) // more than the FIFO holds
	d.print("%s\n", long)
	f.want(long[:4096], long[4096:8192], long[8192:])
	d.print("the end")
	j.Ended("a", "a")
	f.want("the end")
}
