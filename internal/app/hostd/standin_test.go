package hostd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestStandIn(t *testing.T) {
	run := t.TempDir()
	for range 2 { // the second finds what a killed legiond has left
		if _, err := standIn(run, "/x/old"); err != nil {
			t.Skip(err)
		}
	}
	undo, err := standIn(run, "/x/notify")
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(run, "systemd/system")); err != nil || !fi.IsDir() {
		t.Errorf("no /run/systemd/system: %v", err)
	}
	if to, err := os.Readlink(filepath.Join(run, "systemd/notify")); err != nil || to != "/x/notify" {
		t.Errorf("/run/systemd/notify leads to %q, %v", to, err)
	}
	undo()
	if left, _ := os.ReadDir(run); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
