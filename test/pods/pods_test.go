// Package pods holds both runtimes, processes of the host and containers of
// images, to what a pod says: a script for each group of fields, run for either
// by legion-server, legion-agent, legiond and runc. See README.md.
package pods

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside tells the second process of the test that it has mounts of its own.
const inside = "LEGION_PODS_INSIDE"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("LEGION_E2E") == "" || os.Geteuid() != 0 {
		os.Exit(m.Run()) // the tests say why they are skipped
	}
	if os.Getenv(inside) == "" {
		os.Exit(enter())
	}
	os.Exit(run(m))
}

// enter runs the test again with mounts of its own, so that what pods and
// manifests write to the node's directories is not the machine's.
func enter() int {
	runtime.LockOSThread() // the death of the thread would be that of the parent
	// Scripts wait more than they work.
	cmd := exec.Command("/proc/self/exe", append(os.Args[1:], "-test.parallel=24")...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "cannot have mounts of its own:", err)
		return 1
	}
	return 0
}

// private are the directories that pods write to, each with a layer over it
// that goes with the test.
var private = []string{"/etc", "/opt", "/run", "/srv", "/var"}

// cover puts a layer over the machine's directories.
func cover(scratch string) error {
	// As a machine that systemd has booted has it; its parent's are not among
	// the peers.
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("pods", scratch, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	// A container's engine mounts these; a layer shows what lies beneath.
	kept := map[string][]byte{"/etc/hosts": nil, "/etc/resolv.conf": nil}
	for name := range kept {
		kept[name], _ = os.ReadFile(name)
	}
	for _, dir := range private {
		upper, work := filepath.Join(scratch, dir, "upper"), filepath.Join(scratch, dir, "work")
		if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755), os.MkdirAll(dir, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount("pods", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
			return fmt.Errorf("mount a layer over %s: %w", dir, err)
		}
	}
	for name, text := range kept {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(name, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "legion-pods-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // pods of other users look into it
	}
	if err == nil {
		err = cover(filepath.Join(dir, "scratch"))
	}
	if err == nil {
		shared, err = up(dir)
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := down(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code != 0 {
		fmt.Fprintln(os.Stderr, "the fleet's files are kept in", dir)
		return code
	}
	_ = unix.Unmount(filepath.Join(dir, "scratch"), unix.MNT_DETACH)
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

func need(t *testing.T) {
	t.Helper()
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to run pods")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts and containers")
	}
}
