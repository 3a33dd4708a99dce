package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

// waiting makes a cgroup with a shell in it, which waits for what it reads from
// the FIFO go; both it and what is returned are in a directory of their own. The
// cgroup goes at the end of the test, once its process has ended.
func waiting(t *testing.T, tree *Tree, name, script string) (cgroup, f string, gate *os.File) {
	t.Helper()
	cgroup, err := tree.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(name); err != nil {
			t.Error(err)
		}
	})
	f = t.TempDir()
	if err := syscall.Mkfifo(f+"/go", 0o600); err != nil {
		t.Fatal(err)
	}
	spawn(t, cgroup, "cd "+f+"; "+script)
	if gate, err = os.OpenFile(f+"/go", os.O_WRONLY, 0); err != nil { // it waits there, in its cgroup
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gate.Close() })
	return cgroup, f, gate
}

// TestRelimit bounds a process that runs, and lets it go again.
func TestRelimit(t *testing.T) {
	tree := open(t)
	one := &service.Limits{TasksMax: &service.Amount{Value: 1}}
	for name, c := range map[string]struct {
		limits []*service.Limits
		want   string
	}{
		"bound.service": {[]*service.Limits{nil, one}, "fork"},
		"freed.service": {[]*service.Limits{nil, one, nil}, "done"},
		"other.service": {[]*service.Limits{nil, one, {CPUWeight: 50}}, "done"},
	} {
		t.Run(name, func(t *testing.T) {
			_, f, gate := waiting(t, tree, name, "exec >said 2>&1; read x <go; sleep 0; echo done")
			for i := 1; i < len(c.limits); i++ {
				if lost := tree.Relimit(name, c.limits[i-1], c.limits[i]); len(lost) > 0 {
					t.Skip(lost)
				}
			}
			if _, err := gate.WriteString("go\n"); err != nil {
				t.Fatal(err)
			}
			said := ""
			for deadline := time.Now().Add(time.Minute); !strings.Contains(strings.ToLower(said), c.want); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("it said %q, want %q", said, c.want)
				}
				data, _ := os.ReadFile(filepath.Join(f, "said"))
				said = string(data)
			}
		})
	}
}
