package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"legion.dev/legion/test/built"
)

// shortDir is a temporary directory with a path short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startHost runs a legiond of its own on dir until the test ends, and returns
// its process when it has said that it is ready.
func startHost(t *testing.T, dir string, args ...string) *os.Process {
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(shortDir(t), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd := exec.Command(filepath.Join(built.Dir(), "legiond"), append([]string{"--dir", dir}, args...)...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify.LocalAddr().String())
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("legiond did not end within 20s of SIGTERM:\n%s", log.String())
		}
		if t.Failed() {
			t.Logf("legiond said:\n%s", log.String())
		}
	})
	_ = notify.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := notify.Read(buf)
		if err != nil {
			t.Fatalf("legiond is not ready: %v", err)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return cmd.Process
		}
	}
}

func TestFullDiskForLogs(t *testing.T) {
	needRoot(t)
	dir, units := shortDir(t), t.TempDir()
	logs := filepath.Join(dir, "log")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", logs, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount a small log disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(logs, syscall.MNT_DETACH) })
	// 4,000 numbered lines of 100 bytes: more than the disk holds, less than
	// what legiond keeps for a service while the disk is full.
	const lines = 4000
	write(t, filepath.Join(units, "chatty.service"), fmt.Sprintf(`[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'i=0; while [ $$i -lt %d ]; do printf "line %%%%05d %%%%088d\n" $$i 0; i=$$((i+1)); done'
`, lines))
	startHost(t, dir, "--units", units)
	h := "-H" + filepath.Join(dir, "host.sock")
	mustRun(t, 30*time.Second, "legion", "start", h, "chatty.service")
	out, _ := run(10*time.Second, "legion", "status", h, "chatty.service")
	says(t, out, "cannot be written", "make room", logs)

	if err := syscall.Mount("tmpfs", logs, "tmpfs", syscall.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	// The reader follows until the last line is there.
	follow := exec.Command(filepath.Join(built.Dir(), "legion"), "logs", h, "-f", "-n", "-1", "chatty.service")
	pipe, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { _ = follow.Process.Kill() })
	defer timer.Stop()
	var got strings.Builder
	buf := make([]byte, 64<<10)
	for !strings.Contains(got.String(), fmt.Sprintf("line %05d", lines-1)) {
		n, err := pipe.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			break
		}
	}
	_ = follow.Process.Kill()
	_ = follow.Wait()
	for i := range lines {
		if n := strings.Count(got.String(), fmt.Sprintf("line %05d", i)); n != 1 {
			t.Fatalf("line %d is there %d times, want once; %d bytes read", i, n, got.Len())
		}
	}
}
