package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDefaultRoot(t *testing.T) {
	hybrid := "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
	for _, c := range []struct{ mounts, own, want string }{
		{hybrid, "4:memory:/x\n0::/\n", "/sys/fs/cgroup/unified/legion-1"},
		{hybrid, "0::/a/b\n", "/sys/fs/cgroup/unified/a/b/legion-1"},
		{"31 30 0:27 / /sys/fs/cgroup rw - cgroup2 none rw\n", "0::/user.slice\n", "/sys/fs/cgroup/user.slice/legion-1"},
		{"31 30 0:27 /docker/1 /sys/fs/cgroup rw - cgroup2 none rw\n", "0::/docker/1/sub\n", "/sys/fs/cgroup/sub/legion-1"},
		{"31 30 0:27 /../.. /sys/fs/cgroup rw - cgroup2 none rw\n", "0::/\n", "/sys/fs/cgroup/legion-1"},
		{`31 30 0:27 / /my\040cgroups rw - cgroup2 none rw` + "\n", "0::/a\n", "/my cgroups/a/legion-1"},
	} {
		if got, err := defaultRoot(c.mounts, c.own, "legion-1"); err != nil || got != c.want {
			t.Errorf("%q %q: got %q, %v; want %q", c.mounts, c.own, got, err, c.want)
		}
	}
	if _, err := defaultRoot("30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n", "0::/\n", "x"); err == nil || !strings.Contains(err.Error(), "no cgroup2 file system is mounted") {
		t.Errorf("no mount: %v", err)
	}
}

func open(t *testing.T) *Tree {
	t.Helper()
	root, err := Default(fmt.Sprintf("legion-test-cgroup-%d", os.Getpid()))
	if err != nil {
		t.Skip(err)
	}
	tree, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if mode, reason := tree.Mode(); mode != V2 {
		t.Skip(reason)
	}
	t.Cleanup(func() {
		tree.Close()
		if err := tree.Remove("."); err != nil {
			t.Error(err)
		}
	})
	return tree
}

func spawn(t *testing.T, dir, script string) int {
	t.Helper()
	sys := &syscall.SysProcAttr{Setsid: true}
	if dir != "" {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sys.UseCgroupFD, sys.CgroupFD = true, int(f.Fd())
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{null.Fd(), null.Fd(), null.Fd()}, Env: os.Environ(), Sys: sys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = syscall.Wait4(pid, nil, 0, nil) })
	return pid
}

func waitEmpty(t *testing.T, tree *Tree, path string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case p := <-tree.Empty():
			if p == path && !tree.Populated(path) {
				return
			}
		case <-deadline:
			t.Fatalf("%s was not told to be empty", path)
		}
	}
}

// fifo lets a script say that it has come to a point: reading it ends then.
func fifo(t *testing.T) (path string, reached func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() {
		f, err := os.OpenFile(path, os.O_RDWR, 0) // a writer that dies first does not block
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_ = f.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := f.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLifeOfACgroup(t *testing.T) {
	tree := open(t)
	dir, err := tree.Create("pod-1/main")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Create("pod-1"); err != nil {
		t.Fatal(err)
	}
	ready, reached := fifo(t)
	pid := spawn(t, dir, "setsid sleep 1000 & (sleep 1000 & ) ; echo >"+ready+"; wait")
	reached()
	for _, path := range []string{"pod-1", "pod-1/main"} {
		pids, err := tree.Pids(path)
		if err != nil || len(pids) != 3 || !slices.Contains(pids, pid) {
			t.Errorf("%s: %v, %v", path, pids, err)
		}
	}
	if p, ok := tree.Of(pid, []string{"pod-1", "pod-1/main", "pod-2"}); !ok || p != "pod-1/main" {
		t.Errorf("process %d is of %q, %v", pid, p, ok)
	}
	if !tree.Populated("pod-1") {
		t.Error("not populated")
	}
	if n, err := tree.Signal("pod-1", syscall.SIGTERM, pid); n != 2 || err != nil {
		t.Errorf("signalled %d, %v", n, err)
	}
	waitEmpty(t, tree, "pod-1") // the shell's wait has ended with its children
	if err := tree.Remove("pod-1"); err != nil {
		t.Fatal(err)
	}
	if pids, err := tree.Pids("pod-1"); len(pids) != 0 || err != nil {
		t.Errorf("after removal: %v, %v", pids, err)
	}
	if err := tree.Remove("pod-1"); err != nil {
		t.Errorf("second removal: %v", err)
	}
}

func TestKill(t *testing.T) {
	tree := open(t)
	dir, err := tree.Create("cgroup.service") // a name that the kernel uses
	if err != nil {
		t.Fatal(err)
	}
	ready, reached := fifo(t)
	spawn(t, dir, "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000 & wait' & echo >"+ready+"; wait")
	reached()
	if !tree.Populated("cgroup.service") {
		t.Error("not populated")
	}
	if err := tree.Kill("cgroup.service"); err != nil {
		t.Fatal(err)
	}
	waitEmpty(t, tree, "cgroup.service")
	// The next run is not killed with this one.
	if _, err := tree.Create("cgroup.service"); err != nil {
		t.Fatal(err)
	}
	ready, reached = fifo(t)
	pid := spawn(t, dir, "echo >"+ready+"; sleep 1000")
	reached()
	if pids, err := tree.Pids("cgroup.service"); err != nil || !slices.Contains(pids, pid) {
		t.Errorf("after a kill, %d is not among %v, %v", pid, pids, err)
	}
	if !tree.Populated("cgroup.service") {
		t.Error("after a kill, it is not populated")
	}
	if err := tree.Kill("cgroup.service"); err != nil {
		t.Fatal(err)
	}
	waitEmpty(t, tree, "cgroup.service")
	if err := tree.Kill("nosuch.service"); err != nil {
		t.Errorf("killing nothing: %v", err)
	}
}

// TestNoWatch: the kernel bounds how many watches there are.
func TestNoWatch(t *testing.T) {
	tree := open(t)
	dir, err := tree.Create("a.service")
	if err != nil {
		t.Fatal(err)
	}
	ready, reached := fifo(t)
	spawn(t, dir, "(sleep 1000 & ) ; echo >"+ready+"; sleep 1000")
	reached()
	tree.watch.close()
	for range 2 {
		if !tree.Populated("a.service") {
			t.Error("not populated")
		}
	}
	if err := tree.Kill("a.service"); err != nil {
		t.Fatal(err)
	}
	waitEmpty(t, tree, "a.service")
}

func TestWithoutCgroup(t *testing.T) {
	tree, err := Open("/nosuch/place")
	if err != nil {
		t.Fatal(err)
	}
	mode, reason := tree.Mode()
	if mode != None || reason == "" {
		t.Fatalf("%s %q", mode, reason)
	}
	if dir, err := tree.Create("a.service"); dir != "" || err != nil {
		t.Errorf("%q %v", dir, err)
	}
	ready, reached := fifo(t)
	pid := spawn(t, "", "setsid sleep 1000 & sleep 1000 & echo >"+ready+"; wait")
	tree.Track("a.service", pid, "")
	reached()
	pids, err := tree.Pids("a.service")
	if err != nil || len(pids) != 3 {
		t.Errorf("%v %v", pids, err)
	}
	if err := tree.Kill("a.service"); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for tree.Populated("a.service") { // the children end with no word to us
		if time.Now().After(deadline) {
			t.Fatal("still populated")
		}
	}
	tree.Exited(pid)
	waitEmpty(t, tree, "a.service")
}

// TestMarkInExec: a process in the middle of exec has no environment yet, which
// is no answer to keep.
func TestMarkInExec(t *testing.T) {
	tree := Without("a test")
	defer tree.Close()
	cmd := exec.Command("/bin/cat")
	cmd.Env = []string{}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	p, ok := readProcess(cmd.Process.Pid)
	if !ok || !p.memory {
		t.Fatalf("it is %+v", p)
	}
	tree.mu.Lock()
	defer tree.mu.Unlock()
	if mark := tree.mark(p); mark != "" || len(tree.marks) != 0 {
		t.Errorf("its mark is %q, kept as %v", mark, tree.marks)
	}
	self, _ := readProcess(os.Getpid())
	if tree.mark(self); len(tree.marks) != 1 {
		t.Errorf("kept are %v", tree.marks)
	}
}
