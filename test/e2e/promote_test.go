package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"legion.dev/legion/test/built"
)

// promoted prints the DaemonSet of a unit and what legion says about it.
func promoted(t *testing.T, units, unit string, args ...string) (manifest, said string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(built.Dir(), "legion"), append([]string{"promote", "--units", units, unit}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return stdout.String(), stderr.String()
}

// TestPromotedUnitRunsOnEveryNode: its readiness is its own notification, its
// command takes a variable from a file, and its niceness has no field in a pod.
func TestPromotedUnitRunsOnEveryNode(t *testing.T) {
	f := shareFleet(t)
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(built.Dir(), "legion"), filepath.Join(dir, "systemd-notify")); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"promoted.env": "LENGTH=86471\n",
		"promoted.service": "[Unit]\nAfter=network.target\n[Service]\nType=notify\nNotifyAccess=all\nNice=7\nTimeoutStopSec=2\n" +
			"EnvironmentFile=" + dir + "/promoted.env\nExecStart=/bin/sh -c '" + dir + "/systemd-notify --ready; exec sleep ${LENGTH}'\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	manifest, said := promoted(t, dir, "promoted", "--selector", "app=promoted")
	says(t, said, "in the annotation: Nice=7", "in the annotation: Type=notify", "left out: After=network.target")
	f.deploy(t, "promoted", manifest)
	untilPids(t, 3, "sleep", "86471")
	for node, pod := range f.pods(t, "promoted") {
		pid := mainRun(t, f.groupOf(t, pod)).PID
		// The system call gives 20 less the niceness.
		if n, err := syscall.Getpriority(syscall.PRIO_PROCESS, pid); err != nil || n != 20-7 {
			t.Errorf("%s: process %d has priority %d (%v)", node, pid, n, err)
		}
	}

	manifest, _ = promoted(t, dir, "promoted", "--name", "spoilt", "--selector", "app=spoilt")
	f.applyBroken(t, "spoilt", strings.Replace(manifest, "Nice=7", "Nice=70", 1))
	says(t, f.waiting(t, "spoilt", "CreateContainerConfigError"), "annotation unit.legion.dev/spoilt", "Nice=")
}
