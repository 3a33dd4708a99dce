package hostd

import (
	"encoding/json"
	"fmt"
	"os"

	"legion.dev/legion/internal/hostapi"
)

// eventsSize is how large the event journal grows before it is turned over;
// one older file is kept.
const eventsSize = 1 << 20

// events appends transitions to a file, one JSON document a line.
type events struct {
	path string
	f    *os.File
	size int64
}

func openEvents(path string) (*events, error) {
	e := &events{path: path}
	return e, e.open()
}

func (e *events) open() error {
	f, err := os.OpenFile(e.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("cannot open the event journal: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("cannot open the event journal: %w", err)
	}
	e.f, e.size = f, st.Size()
	return nil
}

func (e *events) add(t hostapi.Transition) error {
	line, err := json.Marshal(t)
	if err != nil {
		return err
	}
	if e.size+int64(len(line)) > eventsSize {
		if err := os.Rename(e.path, e.path+".1"); err == nil {
			e.f.Close()
			if err := e.open(); err != nil {
				return err
			}
		}
	}
	n, err := e.f.Write(append(line, '\n'))
	e.size += int64(n)
	return err
}

func (e *events) close() { e.f.Close() }
