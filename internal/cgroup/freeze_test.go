package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFreeze(t *testing.T) {
	tree := open(t)
	dir, f, gate := waiting(t, tree, "cold.service", "read x <go; echo $x >said")
	until := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	if err := tree.Freeze("cold.service", true); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = tree.Freeze("cold.service", false) })
	until("it is not frozen", func() bool {
		data, _ := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		return strings.Contains(string(data), "frozen 1")
	})
	if _, err := gate.WriteString("on\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f + "/said"); err == nil {
		t.Error("it has run")
	}
	if err := tree.Freeze("cold.service", false); err != nil {
		t.Fatal(err)
	}
	until("it does not go on", func() bool { data, _ := os.ReadFile(f + "/said"); return string(data) == "on\n" })
}
