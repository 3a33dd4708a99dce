package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestForget makes a container's cgroups as runc does, and leaves them.
func TestForget(t *testing.T) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	var above []string
	for _, controller := range append([]string{"freezer", "devices", "name=systemd"}, v1Controllers...) {
		if dir, err := own1(string(mountinfo), string(own), controller); err == nil {
			above = append(above, dir)
		}
	}
	if mount, _, ok := findMount(string(mountinfo)); ok {
		above = append(above, mount)
	}
	name := fmt.Sprintf("pod-test-%d-main", os.Getpid())
	var made []string
	for _, dir := range above {
		left := filepath.Join(dir, name)
		if err := os.Mkdir(left, 0o755); err != nil {
			continue // not ours to write, or mounted together with another
		}
		t.Cleanup(func() { _ = os.Remove(left) })
		made = append(made, left)
	}
	if len(made) == 0 {
		t.Skipf("no cgroup can be made in %s", strings.Join(above, ", "))
	}
	if err := Forget(name); err != nil {
		t.Fatal(err)
	}
	for _, dir := range made {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}
