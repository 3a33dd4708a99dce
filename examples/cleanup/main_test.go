package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// tree makes files, each with an age.
func tree(t *testing.T, files map[string]time.Duration, now time.Time) string {
	t.Helper()
	dir := t.TempDir()
	for name, age := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func there(t *testing.T, dir, name string) bool {
	t.Helper()
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}

func TestRound(t *testing.T) {
	now := time.Now()
	files := map[string]time.Duration{
		"old.tmp": 48 * time.Hour, "new.tmp": time.Hour, "old.keep": 48 * time.Hour, "sub/deep/old.tmp": 48 * time.Hour,
	}
	for _, dry := range []bool{true, false} {
		dir := tree(t, files, now)
		outside := tree(t, map[string]time.Duration{"old.tmp": 48 * time.Hour}, now)
		for link, to := range map[string]string{"dir-link": outside, "file-link.tmp": filepath.Join(outside, "old.tmp")} {
			if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		c := config{dirs: dirs{dir, filepath.Join(dir, "absent")}, match: "*.tmp", olderThan: 24 * time.Hour, dryRun: dry}
		if err := c.round(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{
			"old.tmp": dry, "sub/deep/old.tmp": dry, "new.tmp": true, "old.keep": true, "dir-link": true, "file-link.tmp": true,
		} {
			if got := there(t, dir, name); got != want {
				t.Errorf("dry run %v: %s there: %v, want %v", dry, name, got, want)
			}
		}
		if !there(t, outside, "old.tmp") {
			t.Error("a file outside was removed through a link")
		}
	}
}

func TestCheckRefusesMistakes(t *testing.T) {
	good := config{dirs: dirs{"/tmp/x"}, match: "*", olderThan: time.Hour}
	if err := good.check(time.Hour); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]config{
		"no directory":        {match: "*", olderThan: time.Hour},
		"the whole machine":   {dirs: dirs{"/"}, match: "*", olderThan: time.Hour},
		"the same, disguised": {dirs: dirs{"/tmp/.."}, match: "*", olderThan: time.Hour},
		"a relative path":     {dirs: dirs{"tmp"}, match: "*", olderThan: time.Hour},
		"a broken pattern":    {dirs: dirs{"/tmp/x"}, match: "[", olderThan: time.Hour},
		"no age":              {dirs: dirs{"/tmp/x"}, match: "*"},
	} {
		if err := bad.check(time.Hour); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
