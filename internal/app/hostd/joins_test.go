package hostd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"legion.dev/legion/internal/sandbox"
)

// TestJoinsNamespaceOf: what one unit puts into its /tmp the other sees, and both
// are in the same network and IPC namespace, also after either has started again
// and after legiond was killed; a unit that joins nothing is by itself.
func TestJoinsNamespaceOf(t *testing.T) {
	if m := sandbox.ThisMachine(); !m.Mounts || !m.Network || !m.IPC || os.Geteuid() != 0 {
		t.Skipf("this machine gives only %+v", m)
	}
	const private = "[Service]\nPrivateTmp=yes\nPrivateNetwork=yes\nPrivateIPC=yes\nExecStart=/bin/sleep 1000\n"
	d := newDaemon(t, map[string]string{
		"one.service": private, "two.service": "[Unit]\nJoinsNamespaceOf=one.service\n" + private, "alone.service": private,
	})
	directories := func() string {
		var all []string
		for _, dir := range []string{"/tmp", "/var/tmp"} {
			list, _ := filepath.Glob(dir + "/legion-private-*-*.service/tmp/joins-" + filepath.Base(filepath.Dir(d.dir)))
			all = append(all, list...)
		}
		return strings.Join(all, " ")
	}
	run := func(unit, script string) string {
		t.Helper()
		out, exit, err := d.exec(unit, script, "")
		if err != nil || exit.Code != 0 {
			t.Fatalf("%s: %s: %+v, %v: %s", unit, script, exit, err, out)
		}
		return out
	}
	const namespaces = "readlink /proc/self/ns/net /proc/self/ns/ipc"
	file := "joins-" + filepath.Base(filepath.Dir(d.dir))
	same := func() {
		t.Helper()
		for _, dir := range []string{"/tmp/", "/var/tmp/"} {
			run("one.service", "echo hello >"+dir+file)
			if got := run("two.service", "cat "+dir+file); got != "hello\n" {
				t.Errorf("two.service sees %q in %s", got, dir)
			}
			run("alone.service", "! test -e "+dir+file)
		}
		one, two, alone := run("one.service", namespaces), run("two.service", namespaces), run("alone.service", namespaces)
		if one != two {
			t.Errorf("one.service is in\n%sand two.service in\n%s", one, two)
		}
		for _, line := range strings.Split(one, "\n")[:2] {
			if strings.Contains(alone, line) {
				t.Errorf("alone.service is in %s, too", line)
			}
		}
	}
	for _, unit := range []string{"alone.service", "two.service", "one.service"} {
		d.must(unit, "start")
	}
	same()
	d.must("two.service", "restart")
	run("two.service", "cat /tmp/"+file)
	same()
	d.crash()
	d.start()
	d.must("one.service", "restart")
	run("one.service", "cat /tmp/"+file)
	same()
	d.must("two.service", "stop")
	run("one.service", "cat /tmp/"+file)
	d.must("one.service", "stop")
	if left := directories(); left != "" {
		t.Errorf("%s is left", left)
	}
}
