package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// kill ends a journal as SIGKILL does.
func kill(j *Journal) {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.poke()
	<-j.done
}

func wantNone(t *testing.T, j *Journal, group string, run uint64) {
	t.Helper()
	if err := j.Read(t.Context(), group, group, Query{Tail: -1, Run: run}, io.Discard); !errors.Is(err, ErrNotFound) {
		t.Errorf("run %d of %s: %v", run, group, err)
	}
}

// TestSilentRuns: a run that writes nothing leaves no file of its own, and is
// known all the same, also to a journal after a kill.
func TestSilentRuns(t *testing.T) {
	const name = "a b%@x.service" // what is escaped in the file
	dir, run := t.TempDir(), t.TempDir()
	j := open(t, dir, Options{RunDir: run})
	attach(t, j, name, name, 3)
	d := attach(t, j, name, name, 4)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("there is %v, %v", entries, err)
	}
	kill(j)
	d.print("of 4\n") // while nobody is there

	j = open(t, dir, Options{RunDir: run})
	attach(t, j, name, name, 4)
	f := follow(t, j, name, name, Query{Tail: -1, Run: 4})
	f.want("of 4")
	attach(t, j, name, name, 5)
	attach(t, j, name, name, 6)
	f.wantEnd()
	kill(j)
	d.print("of 6\n")

	j = open(t, dir, Options{RunDir: run})
	if services, err := j.services(name); err != nil || len(services) != 1 {
		t.Errorf("services %q, %v", services, err)
	}
	attach(t, j, name, name, 6)
	follow(t, j, name, name, Query{Tail: -1}).want("of 4", "of 6")
	for run, want := range map[uint64]string{3: "", 4: "of 4\n", 5: "", 6: "of 6\n"} {
		if got := read(t, j, name, name, Query{Tail: -1, Run: run}); got != want {
			t.Errorf("run %d: %q, want %q", run, got, want)
		}
	}
	wantNone(t, j, name, 2)
	if marks := readMarks(j.Dir(name, name)); len(marks) != 4 {
		t.Errorf("its own file has %+v", marks)
	}
}

// TestRemovedAndBack: what was removed is not known again, not even if it was
// never loaded.
func TestRemovedAndBack(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	j := open(t, dir, Options{RunDir: run})
	for _, group := range []string{"a", "b", "c"} {
		attach(t, j, group, group, 7)
	}
	if err := j.Remove("a"); err != nil {
		t.Fatal(err)
	}
	attach(t, j, "a", "a", 1)
	kill(j)
	j = open(t, dir, Options{RunDir: run})
	if err := j.Remove("b"); err != nil {
		t.Fatal(err)
	}
	kill(j)
	j = open(t, dir, Options{RunDir: run})
	wantNone(t, j, "a", 7)
	wantNone(t, j, "b", 7)
	for group, run := range map[string]uint64{"a": 1, "c": 7} {
		if got := read(t, j, group, group, Query{Tail: -1, Run: run}); got != "" {
			t.Errorf("%s: %q", group, got)
		}
	}
}

// TestFullBeginnings: when the file has become large, or cannot be written, each
// service has its own.
func TestFullBeginnings(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(b *beginnings)
		own   int // with how many a service's own file begins
	}{
		"large":    {func(b *beginnings) { b.full = b.size }, 2},
		"unlikely": {func(b *beginnings) { b.file.Close() }, 2},
		"small":    {func(*beginnings) {}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir, run := t.TempDir(), t.TempDir()
			j := open(t, dir, Options{RunDir: run})
			attach(t, j, "unloaded", "unloaded", 9)
			kill(j)
			j = open(t, dir, Options{RunDir: run})
			attach(t, j, "a", "a", 1)
			c.spoil(j.begun)
			attach(t, j, "a", "a", 2)
			if got := len(readMarks(j.Dir("a", "a"))); got != c.own {
				t.Errorf("%d in its own file, want %d", got, c.own)
			}
			if name == "large" && (j.begun.size != 0 || len(readMarks(j.Dir("unloaded", "unloaded"))) != 1) {
				t.Errorf("%d bytes are left", j.begun.size)
			}
			kill(j)
			j = open(t, dir, Options{RunDir: run})
			for _, r := range []struct {
				group string
				run   uint64
			}{{"a", 1}, {"a", 2}, {"unloaded", 9}} {
				if got := read(t, j, r.group, r.group, Query{Tail: -1, Run: r.run}); got != "" {
					t.Errorf("run %d of %s: %q", r.run, r.group, got)
				}
			}
		})
	}
}

// TestBrokenBeginnings: a power cut may leave half a line, or any.
func TestBrokenBeginnings(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	line := "a/a 5 2026-01-02T15:04:05.000000000Z 1 0\n"
	text := fmt.Sprintf("%sa/a five\n%%zz/a 6\n\nb/b%sa/a 6 2026-01-02T1", line, line[3:])
	if err := os.WriteFile(filepath.Join(run, ".begun"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	j := open(t, dir, Options{RunDir: run})
	for _, group := range []string{"a", "b"} {
		if got := read(t, j, group, group, Query{Tail: -1, Run: 5}); got != "" {
			t.Errorf("%s: %q", group, got)
		}
	}
	wantNone(t, j, "a", 6)
	attach(t, j, "a", "a", 6)
	kill(j)
	j = open(t, dir, Options{RunDir: run})
	if got := read(t, j, "a", "a", Query{Tail: -1, Run: 6}); got != "" {
		t.Errorf("%q", got)
	}
}
