package hostd

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"legion.dev/legion/internal/service"
)

// TestSocketCommands: commands before and after a socket is opened and closed,
// each once, also where legiond is killed or executed anew in between.
func TestSocketCommands(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	path, said := filepath.Join(dir, "s"), filepath.Join(dir, "said")
	command := func(name string) string {
		return name + "=/bin/sh -c 'test -S " + path + " && here=with; echo " + name + " $$here >>" + said + "'\n"
	}
	d := newDaemon(t, map[string]string{
		"s.socket": "[Socket]\nListenStream=" + path + "\nFileDescriptorName=front\nRemoveOnStop=yes\n" +
			command("ExecStartPre") + command("ExecStartPost") + command("ExecStopPre") + command("ExecStopPost"),
		"s.service":       "[Service]\nEnvironment=LEGION_TEST_DAEMON=socket\nExecStart=" + exe + "\n",
		"refused.socket":  "[Socket]\nListenStream=" + path + "-2\nExecStartPre=/bin/false\nExecStopPost=/bin/sh -c 'echo after >>" + said + "'\nService=s.service\n",
		"late.socket":     "[Socket]\nListenStream=" + path + "-3\nExecStartPost=/bin/sleep 1000\nTimeoutSec=100ms\nService=s.service\nRemoveOnStop=yes\n",
		"occupied.socket": "[Socket]\nListenStream=" + l.Addr().String() + "\nExecStartPre=/bin/true\nExecStartPost=/bin/sh -c 'echo never >>" + said + "'\nService=s.service\n",
	})
	happened := func(want string) {
		t.Helper()
		data, _ := os.ReadFile(said)
		if got := strings.ReplaceAll(string(data), "\n", ", "); got != want {
			t.Errorf("it said %q, want %q", got, want)
		}
		_ = os.Remove(said)
	}
	d.must("s.socket", "start")
	d.triggerUntil("s.socket", service.TriggerListening)
	happened("ExecStartPre, ExecStartPost with, ")
	first := d.ask(path)
	if !strings.HasSuffix(first, " 1 front true") {
		t.Errorf("it answers %q", first)
	}
	d.crash()
	d.start()
	d.triggerUntil("s.socket", service.TriggerRunning)
	if again := d.ask(path); again != first {
		t.Errorf("after a crash of legiond it answers %q, before %q", again, first)
	}
	d.must("s.service", "stop")
	d.reexec()
	d.triggerUntil("s.socket", service.TriggerListening)
	g, err := d.client.Group(d.ctx, "s.socket")
	if err != nil || g.ActiveState != "active" || g.SubState != "listening" {
		t.Errorf("it is %s (%s): %v", g.ActiveState, g.SubState, err)
	}
	if _, err := d.client.Do(d.ctx, "occupied.socket", "start", true); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("the socket of another: %v", err)
	}
	d.must("s.socket", "restart")
	d.must("s.socket", "stop")
	happened("ExecStopPre with, ExecStopPost, ExecStartPre, ExecStartPost with, ExecStopPre with, ExecStopPost, ")

	if _, err := d.client.Do(d.ctx, "refused.socket", "start", true); err == nil || !strings.Contains(err.Error(), "/bin/false exited with status 1") {
		t.Errorf("a command that fails: %v", err)
	}
	happened("after, ")
	if c, err := net.Dial("unix", path+"-2"); err == nil {
		c.Close()
		t.Error("a socket whose command has failed listens")
	}
	if _, err := d.client.Do(d.ctx, "late.socket", "start", true); err == nil {
		t.Error("a command that does not end is waited for")
	}
	if _, err := os.Lstat(path + "-3"); err == nil {
		t.Error("a socket whose command came too late is still there")
	}
}
