package runner

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/service"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root makes mounts")
	}
}

// hostMounts counts the host's mounts that name the directory.
func hostMounts(t *testing.T, dir string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), dir)
}

// TestMounts: what a service mounts it alone sees, and nothing of it is left.
func TestMounts(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"volume/sub", "there"} {
		if err := os.MkdirAll(at(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("volume/sub/file"), []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	group := uint32(4321)
	list := []service.Mount{
		{Source: at("volume"), Target: at("there")},
		{Source: at("volume"), SubPath: "sub", Target: at("new/deep/dir"), ReadOnly: true},
		{Source: at("volume"), SubPath: "sub/file", Target: at("new/file"), ReadOnly: true},
		{Source: at("volume"), SubPath: "made", Target: at("new/made")},
		{Source: at("scratch"), Target: at("scratched"), Is: "DirectoryOrCreate", Mode: 0o2777, Group: &group},
		{Source: at("memory"), Target: at("ram"), Is: "DirectoryOrCreate", Mode: 0o777, Tmpfs: true, Size: 1 << 20},
	}
	q := shell(`cd ` + dir + `
		cat there/sub/file new/deep/dir/file new/file; echo
		touch new/deep/dir/x 2>/dev/null && echo written
		touch new/made/here scratched/here ram/here /etc/hosts
		stat -c '%a %g' scratched; stat -f -c %T ram; df -k --output=size ram | tail -1 | tr -d ' '`)
	q.Context = &service.ExecContext{Mounts: list}
	want := "insideinsideinside\n2777 4321\ntmpfs\n1024"
	if got := output(t, q); got != want {
		t.Errorf("the service saw %q, want %q", got, want)
	}
	for _, name := range []string{"volume/made/here", "scratch/here", "memory/here"} {
		if _, err := os.Stat(at(name)); err != nil {
			t.Errorf("what the service wrote: %v", err)
		}
	}
	if n := hostMounts(t, dir); n != 1 {
		t.Errorf("%d mounts on the host, want the tmpfs alone", n)
	}
	// A second owner keeps the mount points.
	if err := mounts.Prepare("other", "", list[1:2]); err != nil {
		t.Fatal(err)
	}
	if err := mounts.Release(q.Group, list); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(at("new/deep/dir")); err != nil {
		t.Errorf("the other's mount point: %v", err)
	}
	if err := mounts.Release("other", list[1:2]); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"new", "scratched", "ram"} {
		if _, err := os.Lstat(at(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if _, err := os.Stat(at("there")); err != nil {
		t.Errorf("what was there before: %v", err)
	}
	if n := hostMounts(t, dir); n != 0 {
		t.Errorf("%d mounts are left on the host", n)
	}
}

// TestReadOnlyRoot: everything is read-only but the mounts, /proc and /dev.
func TestReadOnlyRoot(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	for _, name := range []string{"volume", "target", "plain"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	q := shell(`cd ` + dir + `; for f in target/f plain/f /etc/legion-test /dev/shm/legion-test; do
		if (echo x >$f) 2>/dev/null; then echo yes; rm $f; else echo no; fi; done; cat /proc/self/comm`)
	q.Context = &service.ExecContext{ReadOnlyRoot: true, Mounts: []service.Mount{{Source: filepath.Join(dir, "volume"), Target: filepath.Join(dir, "target")}}}
	if got, want := output(t, q), "yes\nno\nno\nyes\ncat"; got != want {
		t.Errorf("written to: %q, want %q", got, want)
	}
}

// TestPropagation: "shared" shows the host what the service mounts, "slave" the
// service what the host mounts later, "private" nobody anything.
func TestPropagation(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	volume, target := filepath.Join(dir, "volume"), filepath.Join(dir, "target")
	for _, name := range []string{volume, filepath.Join(volume, "in"), target} {
		if err := os.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(volume, volume, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(volume, unix.MNT_DETACH) })
	if err := unix.Mount("", volume, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string]bool{"shared": true, "slave": false, "private": false, "": false} {
		q := shell("mount -t tmpfs x " + target + "/in && echo done")
		q.Context = &service.ExecContext{Mounts: []service.Mount{{Source: volume, Target: target, Propagation: mode}}}
		if got := output(t, q); got != "done" {
			t.Errorf("%s: %q", mode, got)
		}
		seen := unix.Unmount(filepath.Join(volume, "in"), unix.MNT_DETACH) == nil
		if seen != want {
			t.Errorf("%q: the host sees the service's mount: %v, want %v", mode, seen, want)
		}
	}
}

// TestMountTrouble: each failure says what, and what to do.
func TestMountTrouble(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, m := range map[string]service.Mount{
		"/missing does not exist: make it":          {Source: filepath.Join(dir, "missing"), Target: dir},
		"must be a Directory and is -rw":            {Source: file, Target: dir, Is: "Directory"},
		"path escapes from parent":                  {Source: dir, SubPath: "out", Target: dir},
		"a directory can only be mounted on a dire": {Source: dir, Target: file},
		`type "Door"`:                               {Source: dir, Target: dir, Is: "Door"},
	} {
		q := shell("true")
		q.Context = &service.ExecContext{Mounts: []service.Mount{m}}
		_, err := shared.Start(q)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
