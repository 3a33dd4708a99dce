package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// reopened is what a store holds after it was left without being closed, as by
// SIGKILL: only its lock is let go of.
func reopened(t *testing.T, s *Store) (*Store, map[string]value) {
	t.Helper()
	if err := s.lock.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.dir)
	all, problems := Load[value](s, Runs)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return s, all
}

func save(t *testing.T, s *Store, name, text string) {
	t.Helper()
	if err := s.Save(Runs, name, value{text}); err != nil {
		t.Fatal(err)
	}
}

// TestRunsCutShort: what is left of a last line counts for nothing, and is not
// in the way of the next.
func TestRunsCutShort(t *testing.T) {
	s := open(t, t.TempDir())
	save(t, s, "a b", "old")
	save(t, s, "other", "x")
	before := s.runs.size
	save(t, s, "a b", "new")
	whole, err := os.ReadFile(s.runs.path)
	if err != nil {
		t.Fatal(err)
	}
	for n := before; n < int64(len(whole)); n++ {
		if err := os.WriteFile(s.runs.path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		var all map[string]value
		if s, all = reopened(t, s); len(all) != 2 || all["a b"].A != "old" {
			t.Fatalf("after %d bytes: %v", n, all)
		}
		save(t, s, "next", "y")
		if s, all = reopened(t, s); len(all) != 3 || all["a b"].A != "old" || all["next"].A != "y" {
			t.Fatalf("after %d bytes and a line: %v", n, all)
		}
	}
}

// TestRunsShrink: the file stays small however often something is saved, also
// while it is.
func TestRunsShrink(t *testing.T) {
	s := open(t, t.TempDir())
	const names, times = 8, 400
	pad := fmt.Sprintf("%0512d", 0)
	var all sync.WaitGroup
	for i := range names {
		all.Go(func() {
			for n := range times {
				if err := s.Save(Runs, fmt.Sprint("run ", i), value{fmt.Sprint(pad, n)}); err != nil {
					t.Error(err)
				}
				if n%50 == 49 {
					if err := s.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	for range 2 { // what was added while it was written anew is not looked at
		save(t, s, "gone", pad)
		if err := s.Delete(Runs, "gone"); err != nil {
			t.Fatal(err)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(s.runs.path); err != nil || st.Size() != s.runs.size || st.Size() > worthShrinking {
		t.Errorf("%v, %v", st.Size(), err)
	}
	counted := s.runs.once
	s, got := reopened(t, s)
	if s.runs.once != counted {
		t.Errorf("%d bytes count, and were counted as %d", s.runs.once, counted)
	}
	for i := range names {
		if a := got[fmt.Sprint("run ", i)].A; a != fmt.Sprint(pad, times-1) {
			t.Errorf("run %d: %q", i, a)
		}
	}
	if len(got) != names {
		t.Errorf("%d names", len(got))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRunsBroken: a line that is no document costs only its own name.
func TestRunsBroken(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	save(t, s, "good", "x")
	if err := s.runs.add("broken", []byte("{")); err != nil {
		t.Fatal(err)
	}
	all, problems := Load[value](s, Runs)
	if len(all) != 1 || all["good"].A != "x" || len(problems) != 1 || problems[0].File != s.runs.path {
		t.Errorf("%v, %v", all, problems)
	}
}

// TestRunsOfAnEarlierLegiond: it kept a file for each name, which a line
// outdates.
func TestRunsOfAnEarlierLegiond(t *testing.T) {
	s := open(t, t.TempDir())
	save(t, s, "b", "line")
	for _, name := range []string{"a", "b"} {
		if err := os.WriteFile(s.path(Runs, name), []byte(`{"A":"file"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		var all map[string]value
		if s, all = reopened(t, s); len(all) != 2 || all["a"].A != "file" || all["b"].A != "line" {
			t.Errorf("%v", all)
		}
		if files, err := filepath.Glob(filepath.Join(s.dir, "runs", "*.json")); err != nil || len(files) > 0 {
			t.Errorf("%v, %v", files, err)
		}
	}
}

// TestRunsOnAFullDisk: for a good while runs are saved though the disk is full,
// and what is saved then is there afterwards.
func TestRunsOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("legion-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a small file system here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, filepath.Join(dir, "state"))
	save(t, s, "a", "before")
	ballast, err := os.Create(filepath.Join(dir, "ballast"))
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for i := range 100 {
		save(t, s, "a", fmt.Sprint(i, strings.Repeat(" ", 1000)))
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	// Until there is no more of it.
	var full error
	for i := 0; full == nil && i < 1000; i++ {
		full = s.Save(Runs, "b", value{strings.Repeat("x", 1000)})
	}
	if !errors.Is(full, unix.ENOSPC) {
		t.Fatalf("a full disk takes everything: %v", full)
	}
	_, all := reopened(t, s)
	if !strings.HasPrefix(all["a"].A, "99 ") {
		t.Errorf("saved last: %.20q", all["a"].A)
	}
	if err := errors.Join(ballast.Close(), os.Remove(ballast.Name())); err != nil {
		t.Fatal(err)
	}
}
