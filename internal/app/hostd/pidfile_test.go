package hostd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"legion.dev/legion/internal/service"
)

// TestPIDFileIsNone: what a daemon puts in its PID file's place keeps legiond
// from nothing.
func TestPIDFileIsNone(t *testing.T) {
	d := newDaemon(t, nil)
	pidfile := filepath.Join(d.dir, "fifo")
	d.write("fifo.service", "[Service]\nType=forking\nTimeoutStartSec=1\nPIDFile="+pidfile+"\nExecStart=/bin/sh -c 'mkfifo "+pidfile+"; sleep 1000 &'\n")
	d.write("zero.service", "[Service]\nType=forking\nTimeoutStartSec=1\nPIDFile="+pidfile+".zero\nExecStart=/bin/sh -c 'ln -s /dev/zero "+pidfile+".zero; sleep 1000 &'\n")
	d.write("two.service", "[Service]\nType=forking\nPIDFile="+pidfile+".two\nExecStart=/bin/sh -c 'sleep 1000 & echo $! >"+pidfile+".two; echo of version 2 >>"+pidfile+".two'\n")
	if _, err := d.client.Reload(d.ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fifo.service", "zero.service"} {
		if _, err := d.client.Do(d.ctx, name, "start", false); err != nil {
			t.Fatal(err)
		}
		s := d.until(name, func(s service.Status) bool { return s.State == service.Failed })
		if !strings.Contains(s.Reason, "no regular file") {
			t.Errorf("%s: %s", name, s.Reason)
		}
	}
	d.must("two.service", "start")
	d.must("two.service", "stop")
}

// TestPIDFileNamesAnothers: where no cgroup tells whose a process is, a daemon
// without rights cannot have the superuser's processes stopped for it.
func TestPIDFileNamesAnothers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser's legiond could be deceived")
	}
	t.Setenv("LEGION_TEST_CGROUP", "none")
	victim := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, nil)
	d.openFor(nobody)
	own := filepath.Join(d.dir, "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	d.write("liar.service", "[Service]\nType=forking\nUser=nobody\nTimeoutStartSec=1\nPIDFile="+own+"/pid\nExecStart=/bin/sh -c 'echo "+strconv.Itoa(victim.Process.Pid)+" >"+own+"/pid; sleep 1000 &'\n")
	d.write("honest.service", "[Service]\nType=forking\nUser=nobody\nPIDFile="+own+"/honest\nExecStart=/bin/sh -c 'setsid env -i sleep 1000 & echo $! >"+own+"/honest'\n")
	if _, err := d.client.Reload(d.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := d.client.Do(d.ctx, "liar.service", "start", false); err != nil {
		t.Fatal(err)
	}
	s := d.until("liar.service", func(s service.Status) bool { return s.State == service.Failed })
	if !strings.Contains(s.Reason, "another user's") {
		t.Error(s.Reason)
	}
	if err := victim.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process that was named: %v", err)
	}
	_ = victim.Process.Kill()
	_ = victim.Wait()
	d.must("honest.service", "start")
	d.running("honest.service")
	d.must("honest.service", "stop")
}
