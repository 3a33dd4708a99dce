package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestUsageOf: with the memory controller its figures count, without it those
// of the processes.
func TestUsageOf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := UsageOf(dir); err == nil {
		t.Error("a directory that is no cgroup: no error")
	}
	write("cpu.stat", "usage_usec 1500000\nuser_usec 1\n")
	if err := os.Mkdir(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("cgroup.procs", "")
	write("below/cgroup.procs", strconv.Itoa(os.Getpid())+"\n")
	u, err := UsageOf(dir)
	if err != nil || u.CPU != 1500*time.Millisecond || u.Memory < 1<<20 {
		t.Errorf("by processes: %+v, %v", u, err)
	}
	write("memory.current", "5000\n")
	write("memory.stat", "anon 1\ninactive_file 2000\n")
	if u, err = UsageOf(dir); err != nil || u.Memory != 3000 {
		t.Errorf("by the controller: %+v, %v", u, err)
	}
	if u, err = UsageOfProcess(os.Getpid()); err != nil || u.Memory < 1<<20 {
		t.Errorf("of a process: %+v, %v", u, err)
	}
	if _, err = UsageOfProcess(-1); err == nil {
		t.Error("of no process: no error")
	}
}
