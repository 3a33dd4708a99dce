package hostd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// TestMemoryMax: a service that takes more than it may is killed by the kernel,
// and its status says why.
func TestMemoryMax(t *testing.T) {
	d := newDaemon(t, map[string]string{
		"hog.service": "[Service]\nMemoryMax=16M\nExecStart=/usr/bin/python3 -c 'b = bytearray(64 << 20)'\n",
	})
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip(err)
	}
	_ = d.do("hog.service", "start")
	s := d.until("hog.service", func(s service.Status) bool { return !s.State.Alive() && s.Main != nil && s.Main.Exit != nil })
	for _, l := range s.Lost {
		if strings.HasPrefix(l, "MemoryMax=") || strings.HasPrefix(l, "cgroup:") {
			t.Skip(l)
		}
	}
	if s.Result != service.OOMKill || !s.Main.Exit.OOM {
		t.Errorf("it ended as %s: %+v, %s", s.Result, s.Main.Exit, s.Reason)
	}
}

// TestPrivateTmpGoes: what a service with PrivateTmp=yes leaves goes with it.
func TestPrivateTmpGoes(t *testing.T) {
	if !sandbox.ThisMachine().Mounts {
		t.Skip("no mount namespaces here")
	}
	d := newDaemon(t, map[string]string{
		"tmp.service": "[Service]\nPrivateTmp=yes\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'echo one > /tmp/legion-test-one'\nExecStart=/bin/sh -c 'mv /tmp/legion-test-one /tmp/legion-test-two'\n",
	})
	if err := d.do("tmp.service", "start"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/tmp/legion-test-two"); err == nil {
		t.Error("it is in the host's /tmp")
	}
	left := func() []string {
		all, _ := filepath.Glob("/tmp/legion-private-*-tmp.service/tmp/legion-test-two")
		return all
	}
	if len(left()) != 1 {
		t.Errorf("the commands do not share a directory: %q", left())
	}
	if err := d.do("tmp.service", "stop"); err != nil {
		t.Fatal(err)
	}
	d.until("tmp.service", func(s service.Status) bool { return s.State == service.Dead })
	if len(left()) != 0 {
		t.Errorf("%q is left", left())
	}
}
