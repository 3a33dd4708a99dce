package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What a service has written is stored first and taken out of the FIFO after
// that, so that a legiond which is killed in between loses nothing. So that
// nothing is stored twice either, a note is written before: what is moved from
// where to where. The page cache keeps all three over the death of the process.

// move is what is on its way from a FIFO to a file.
type move struct {
	Group   string `json:"group"`
	Service string `json:"service"`
	Stream  string `json:"stream"`
	// Bytes is how much is taken out of the FIFO, and Sum what it is.
	Bytes int    `json:"bytes"`
	Sum   uint32 `json:"sum"`
	// Seq and Offset are where it is stored, as Stored bytes.
	Seq    int   `json:"seq"`
	Offset int64 `json:"offset"`
	Stored int   `json:"stored"`
}

// notePath is the file of the note. It begins with 1 while a move is under way.
func (j *Journal) notePath() string { return filepath.Join(j.o.RunDir, ".move") }

// move stores lines and takes what they were made of out of the FIFO.
func (j *Journal) move(s *stream, data, lines []byte) {
	j.moving = &move{Group: s.log.group, Service: s.log.service, Stream: s.name, Bytes: len(data), Sum: crc32.ChecksumIEEE(data)}
	j.store(s.log, lines)
	j.moving = nil
	_ = j.take(s.fd, len(data)) // what is there can be read
	j.endNote()
}

// beginNote says what the next write to a log's file is. Where that cannot be
// written neither can the log, as a rule.
func (j *Journal) beginNote(l *log, stored int) {
	if j.moving == nil {
		return
	}
	j.moving.Seq, j.moving.Offset, j.moving.Stored = l.last(), l.size, stored
	text, err := json.Marshal(j.moving)
	if err != nil {
		return
	}
	_, err = j.note.WriteAt(append(append([]byte{'1'}, text...), '\n'), 0)
	j.noted = err == nil
}

func (j *Journal) endNote() {
	if j.noted {
		_, _ = j.note.WriteAt([]byte{'0'}, 0)
		j.noted = false
	}
}

// resume ends the move that an earlier legiond was killed at.
func (j *Journal) resume() error {
	var err error
	if j.note, err = os.OpenFile(j.notePath(), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	text, err := io.ReadAll(io.NewSectionReader(j.note, 0, 4096))
	if err != nil {
		return err
	}
	var m move
	if text, ok := bytes.CutPrefix(text, []byte{'1'}); !ok || json.NewDecoder(bytes.NewReader(text)).Decode(&m) != nil {
		return nil // nothing was under way
	}
	j.noted = true
	defer j.endNote()
	l, err := j.load(m.Group, m.Service)
	if err != nil || l.last() != m.Seq {
		return nil // the log was removed
	}
	st, err := os.Stat(l.path(m.Seq))
	if err != nil || st.Size() < m.Offset {
		return nil
	}
	if st.Size() < m.Offset+int64(m.Stored) {
		// It is stored in part only, and still in the FIFO.
		l.size = m.Offset
		return os.Truncate(l.path(m.Seq), m.Offset)
	}
	return j.takeStored(&m)
}

// takeStored takes out of a FIFO what is stored, if it is still there.
func (j *Journal) takeStored(m *move) error {
	fd, err := unix.Open(filepath.Join(j.o.RunDir, m.Group, m.Service+"."+m.Stream), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the FIFO of %s: %w", m.Service, err)
	}
	defer unix.Close(fd)
	n, err := j.peek(fd)
	if err != nil || n < m.Bytes || crc32.ChecksumIEEE(j.buf[:m.Bytes]) != m.Sum {
		return nil // it was taken out, or its writer has ended
	}
	return j.take(fd, m.Bytes)
}
