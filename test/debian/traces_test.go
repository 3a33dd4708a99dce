package debian

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// traces are what a unit that has run must not leave behind: processes, mounts
// and cgroups of the machine.
func (m *machine) traces(t *testing.T) []string {
	t.Helper()
	var out []string
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == m.pid {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || ns != own {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		out = append(out, fmt.Sprintf("process %d: %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		out = append(out, "mount: "+strings.TrimSpace(line))
	}
	root := m.path("/sys/fs/cgroup")
	_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			out = append(out, "cgroup: "+strings.TrimPrefix(path, root))
		}
		return nil
	})
	return out
}

// left are the traces that were not there before.
func (m *machine) left(t *testing.T, before []string) []string {
	return slices.DeleteFunc(m.traces(t), func(trace string) bool { return slices.Contains(before, trace) })
}
