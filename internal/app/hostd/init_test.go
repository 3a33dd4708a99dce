package hostd

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ownPlaces gives PID 1 a /run and a /dev of its own: it puts links there.
const ownPlaces = "mount -t tmpfs none /run && mkdir /run/dev && for n in null zero full random urandom tty; do touch /run/dev/$n; mount --bind /dev/$n /run/dev/$n; done && mount --rbind /run/dev /dev; "

// asInit runs legiond as PID 1 of namespaces that an ordinary user may make,
// with nothing prepared but what the script does, and returns how it ended.
func asInit(t *testing.T, dir, script string, units map[string]string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	if err := exec.Command("unshare", "-Urpfm", "true").Run(); err != nil {
		t.Skipf("this machine allows no namespaces: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "units"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range units {
		if err := os.WriteFile(filepath.Join(dir, "units", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command("unshare", "-Urpfm", "--kill-child", "sh", "-c", ownPlaces+script+"; exec "+exe)
	cmd.Env = append(os.Environ(), append([]string{"LEGION_TEST_DIR=" + dir}, env...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	return cmd, &out
}

// TestInitEssential: PID 1 mounts a /proc of its own, collects orphans, and
// ends with the status of the essential service after it has stopped the rest.
func TestInitEssential(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "up"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, out := asInit(t, dir, "true", map[string]string{
		"main.service": "[Unit]\nAfter=side.service\nRequires=side.service\n[Service]\nExecStart=/bin/sh -c 'read x <" + dir + "/up; for i in 1 2 3; do (true & exec true) & done; wait; readlink /proc/self >" + dir + "/self; grep -c Z /proc/[0-9]*/stat >/dev/null; exit 42'\n",
		"side.service": "[Service]\nType=exec\nKillMode=mixed\nExecStart=/bin/sh -c 'trap \"echo stopped >" + dir + "/side; exit\" TERM; echo up >" + dir + "/up; sleep 1000 & wait'\n",
	}, "LEGION_TEST_ESSENTIAL=main.service")
	err := cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 42 {
		t.Errorf("it ended with %d (%v): %s", code, err, out)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "side")); string(data) != "stopped\n" {
		t.Errorf("the other service was not stopped: %q", data)
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "self")); len(data) == 0 || len(data) > 5 {
		t.Errorf("/proc/self is %q", data)
	}
	if strings.Contains(out.String(), "no essential unit") {
		t.Error(out)
	}
}

// TestInitSyslog: what a service says on /dev/log is with what it writes.
func TestInitSyslog(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "log", "say.service", "say.service", "*.log")
	cmd, out := asInit(t, dir, "true", map[string]string{
		"main.service": "[Unit]\nWants=say.service\n[Service]\nExecStart=/bin/sh -c 'until cat " + file + " 2>/dev/null | grep \"stderr F <4>say: hello$$\"; do sleep 0.02; done; readlink /dev/log >" + dir + "/link'\n",
		"say.service":  "[Service]\nEnvironment=LEGION_TEST_DAEMON=syslog\nExecStart=" + exe + "\n",
	}, "LEGION_TEST_ESSENTIAL=main.service")
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, out)
	}
	if said, _ := os.ReadFile(filepath.Join(dir, "link")); string(said) != "/run/systemd/journal/dev-log\n" {
		t.Errorf("/dev/log is %q: %s", said, out)
	}
}

// TestInitSyslogOutside: what a process of no unit says is in a log of its own.
func TestInitSyslogOutside(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "log", "syslog", "syslog", "*.log")
	outside := "(until test -S /dev/log; do sleep 0.02; done; exec env -i LEGION_TEST_DAEMON=syslog " + exe + ") & true"
	cmd, out := asInit(t, dir, outside, map[string]string{
		"main.service": "[Service]\nExecStart=/bin/sh -c 'until cat " + file + " 2>/dev/null | grep \"<4>say: hello$$\"; do sleep 0.02; done'\n",
	}, "LEGION_TEST_ESSENTIAL=main.service")
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, out)
	}
}

// TestInitReadOnly: with a directory on a read-only file system the state is in
// memory, and SIGTERM ends everything with status 0.
func TestInitReadOnly(t *testing.T) {
	dir := t.TempDir()
	ready := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, out := asInit(t, dir, "mount --bind "+dir+" "+dir+" && mount -o remount,bind,ro "+dir+" && mount -t tmpfs none /mnt && mkdir -p /mnt/legion && ln -s "+dir+"/units /mnt/legion/units", map[string]string{
		"main.service": "[Service]\nExecStart=/bin/sh -c 'echo up >" + ready + "; exec sleep 1000'\n[Install]\nWantedBy=multi-user.target\n",
	}, "LEGION_TEST_MEMORY=/mnt/legion")
	f, err := os.OpenFile(ready, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(patience))
	if _, err := f.Read(make([]byte, 1)); err != nil {
		t.Errorf("the service did not start: %v\n%s", err, out)
	}
	// unshare has one child: PID 1.
	children, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children")
	pid, _ := strconv.Atoi(strings.TrimSpace(string(children)))
	if pid < 2 {
		t.Fatalf("no PID 1: %q", children)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("the state is on the read-only directory")
	}
}
