package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type value struct{ A string }

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, k := range kinds {
		for _, name := range []string{"cron.service", "a b/../c", "x@y.service"} {
			if err := s.Save(k, name, value{name}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Delete(k, "x@y.service"); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(k, "never there"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	for _, k := range kinds {
		all, problems := Load[value](s, k)
		if len(problems) > 0 || len(all) != 2 || all["a b/../c"].A != "a b/../c" {
			t.Errorf("%s: %v, %v", k, all, problems)
		}
	}
}

// TestCutShort: whatever a power cut leaves of a file, the others are read, the
// broken one is set aside and told of.
func TestCutShort(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	for _, name := range []string{"good", "broken"} {
		if err := s.Save(Groups, name, value{"whole"}); err != nil {
			t.Fatal(err)
		}
	}
	path := s.path(Groups, "broken")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		// A write that was under way leaves its temporary file.
		if err := os.WriteFile(path+".new", whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		all, problems := Load[value](s, Groups)
		if len(all) != 1 || all["good"].A != "whole" {
			t.Fatalf("after %d bytes: %v", n, all)
		}
		if len(problems) != 1 || !strings.Contains(problems[0].Text, "set aside") || problems[0].File != path {
			t.Fatalf("after %d bytes: %v", n, problems)
		}
		if got, err := os.ReadFile(path + ".broken"); err != nil || string(got) != string(whole[:n]) {
			t.Fatalf("after %d bytes nothing was set aside: %v", n, err)
		}
		if _, err := os.Stat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the temporary file stays: %v", err)
		}
	}
}

func TestOneOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := open(t, dir)
	_, err := Open(dir)
	if err == nil || !strings.Contains(err.Error(), "another legiond (pid ") {
		t.Errorf("the second owner gets %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() == 0 {
		if _, err := os.Stat("/dev/full"); err != nil {
			t.Skip("no /dev/full")
		}
	}
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	if err := s.Save(Groups, "g", value{"old"}); err != nil {
		t.Fatal(err)
	}
	// What is written goes to a full device.
	temp := s.path(Groups, "g") + ".new"
	if err := os.Symlink("/dev/full", temp); err != nil {
		t.Fatal(err)
	}
	err := s.Save(Groups, "g", value{"new"})
	if err == nil || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), "state of g") {
		t.Errorf("a full disk gives %v", err)
	}
	if all, _ := Load[value](s, Groups); all["g"].A != "old" {
		t.Errorf("the old state is lost: %v", all)
	}
}
