package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFreeze(t *testing.T) {
	tree := open(t)
	dir, err := tree.Create("cold.service")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove("cold.service"); err != nil { // once its process has ended
			t.Error(err)
		}
	})
	f := t.TempDir()
	if err := syscall.Mkfifo(f+"/go", 0o600); err != nil {
		t.Fatal(err)
	}
	spawn(t, dir, "read x <"+f+"/go; echo $x >"+f+"/said")
	gate, err := os.OpenFile(f+"/go", os.O_WRONLY, 0) // it waits there, in its cgroup
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close()
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
