package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// sink is a collector for the test.
type sink struct {
	*httptest.Server
	lines chan string
	down  atomic.Bool
}

func newSink(t *testing.T) *sink {
	s := &sink{lines: make(chan string, 1000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.down.Load() {
			http.Error(w, "away", http.StatusServiceUnavailable)
			return
		}
		for d := json.NewDecoder(r.Body); ; {
			var l line
			if err := d.Decode(&l); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Error(err)
				break
			}
			s.lines <- l.Line
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(s.Close)
	return s
}

// want waits for exactly these lines, in order.
func (s *sink) want(t *testing.T, lines ...string) {
	t.Helper()
	for _, want := range lines {
		select {
		case got := <-s.lines:
			if got != want {
				t.Fatalf("got line %q, want %q", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("line %q did not come", want)
		}
	}
	select {
	case got := <-s.lines:
		t.Fatalf("line %q came twice or from nowhere", got)
	default:
	}
}

// start runs a follower and returns a function that ends it.
func start(t *testing.T, s *sink, dir, from string) func() {
	t.Helper()
	c := config{
		files: globs{filepath.Join(dir, "*.log")}, to: s.URL, node: "n1",
		checkpoint: filepath.Join(dir, "state", "checkpoint.json"), fromEnd: from == "end",
	}
	f, err := newFollower(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		err := f.run(ctx)
		f.close()
		ended <- err
	}()
	<-f.started
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func TestRotation(t *testing.T) {
	dir, s := t.TempDir(), newSink(t)
	log := filepath.Join(dir, "app.log")
	write(t, log, "one\ntwo\n")
	start(t, s, dir, "beginning")
	s.want(t, "one", "two")
	write(t, log, "three\nhal")
	s.want(t, "three")
	write(t, log, "f\n")
	s.want(t, "half")

	// By renaming: the writer goes on with the old file for a while.
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, log+".1", "late\n")
	s.want(t, "late")
	write(t, log, "new file\n")
	s.want(t, "new file")

	// By truncation.
	if err := os.Truncate(log, 0); err != nil {
		t.Fatal(err)
	}
	write(t, log, "short\n")
	s.want(t, "short")
}

func TestRestartGoesOn(t *testing.T) {
	dir, s := t.TempDir(), newSink(t)
	log := filepath.Join(dir, "app.log")
	write(t, log, "history\n")
	stop := start(t, s, dir, "end")
	write(t, filepath.Join(dir, "other.log"), "a new file from its beginning\n")
	s.want(t, "a new file from its beginning")
	write(t, log, "one\n")
	s.want(t, "one")
	stop()

	// While it is away lines come, the file is rotated, more lines come.
	write(t, log, "two\n")
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, log, "three\n")
	start(t, s, dir, "end")
	got := map[string]bool{}
	for range 2 { // two files, in any order
		select {
		case l := <-s.lines:
			got[l] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("only %v came", got)
		}
	}
	if !got["two"] || !got["three"] {
		t.Errorf("got %v, want two and three", got)
	}
	s.want(t)
}

func TestNothingIsLostWhileTheCollectorIsAway(t *testing.T) {
	dir, s := t.TempDir(), newSink(t)
	log := filepath.Join(dir, "app.log")
	s.down.Store(true)
	write(t, log, "one\n")
	stop := start(t, s, dir, "beginning")
	write(t, log, "two\n")
	stop() // ends although nobody takes the lines
	s.down.Store(false)
	start(t, s, dir, "beginning")
	s.want(t, "one", "two")
}

func TestReadLines(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	for _, tt := range []struct {
		name, text string
		last       bool
		lines      int
		end        int64
	}{
		{"nothing", "", false, 0, 0},
		{"an incomplete line waits", "a\nb", false, 1, 2},
		{"the last line of a file that is gone", "b", true, 1, 1},
		{"a line that is too long goes in pieces", long, false, 1, maxLine},
		{"empty lines", "\n\n", false, 2, 2},
	} {
		lines, end, err := readLines(strings.NewReader(tt.text), 0, tt.last)
		if err != nil || len(lines) != tt.lines || end != tt.end {
			t.Errorf("%s: got %d lines to %d, %v; want %d to %d", tt.name, len(lines), end, err, tt.lines, tt.end)
		}
	}
}

func TestReusedInodeIsANewFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "app.log")
	write(t, path, "one\n")
	open := func() *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	c, _, err := openCheckpoint(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	id := identity{1, 2}
	c.keep(&tailed{identity: id, path: path, file: open(), offset: 4})
	if offset, ok := c.find(id, open()); !ok || offset != 4 {
		t.Errorf("the same file: got %d, %v", offset, ok)
	}
	if err := os.WriteFile(path, []byte("another file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if offset, ok := c.find(id, open()); ok {
		t.Errorf("another file with its inode: got %d", offset)
	}
}
