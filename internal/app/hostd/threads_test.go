package hostd

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// nobody is who the tests start legiond as where the superuser's rights would
// spare it a limit.
const nobody = 65534

// asNobody starts legiond anew as a user without rights.
func (d *daemon) asNobody() {
	d.t.Helper()
	d.stop()
	if os.Geteuid() == 0 {
		d.openFor(nobody)
		err := filepath.Walk(d.dir, func(path string, _ os.FileInfo, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, nobody, nobody)
		})
		if err != nil {
			d.t.Fatal(err)
		}
		d.as = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	d.cgroup = "none"
	d.start()
}

// openFor lets a user come to legiond's directory.
func (d *daemon) openFor(user uint32) {
	d.t.Helper()
	for _, dir := range []string{filepath.Dir(d.dir), d.dir} {
		if err := os.Chmod(dir, 0o755); err != nil {
			d.t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(d.ctx, "/bin/true")
	cmd.Dir, cmd.SysProcAttr = d.dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if err := cmd.Run(); err != nil {
		d.t.Skipf("user %d cannot come to the tests' directory: %v", user, err)
	}
}

// limit changes a soft limit of legiond's own. It is asked for by a process of
// the same user: the superuser may not everywhere.
func (d *daemon) limit(what, to string) {
	d.t.Helper()
	cmd := exec.CommandContext(d.ctx, "prlimit", "--pid", strconv.Itoa(d.cmd.Process.Pid), "--"+what+"="+to+":")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: d.as}
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatal(string(out), err)
	}
}

// TestNoDescriptorIsFree: which limit keeps a service from its start is said.
func TestNoDescriptorIsFree(t *testing.T) {
	d := newDaemon(t, map[string]string{"a.service": "[Service]\nExecStart=/bin/sleep 1000\n"})
	open, err := os.ReadDir("/proc/" + strconv.Itoa(d.cmd.Process.Pid) + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	d.limit("nofile", strconv.Itoa(len(open)+2)) // one for the client that asks
	err = d.do("a.service", "start")
	d.limit("nofile", "1024")
	if s := d.until("a.service", func(s service.Status) bool { return s.State == service.Failed }); err == nil || !strings.Contains(s.Reason, "LimitNOFILE=") {
		t.Errorf("%v; %s", err, s.Reason)
	}
	d.must("a.service", "start")
}

// TestNoProcessIsFree: where the kernel gives no process and no thread anymore,
// legiond goes on, answers, says what it could not start, and starts it later.
func TestNoProcessIsFree(t *testing.T) {
	d := newDaemon(t, map[string]string{
		"loud.service": "[Service]\nExecStart=/bin/sh -c 'while kill -0 $$PPID; do echo line; done'\n[Install]\nWantedBy=multi-user.target\n",
		"late.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=0\nExecStart=/bin/sleep 1000\n",
	})
	d.asNobody()
	d.running("loud.service")
	d.limit("nproc", "0")
	if _, err := d.client.Do(d.ctx, "late.service", "start", false); err != nil {
		t.Error(err)
	}
	d.until("late.service", func(s service.Status) bool { return strings.Contains(s.Reason, "resource temporarily unavailable") })
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 20 {
				if _, err := d.client.Groups(d.ctx); err != nil {
					t.Error(err)
					return
				}
				log, err := d.client.Logs(d.ctx, "loud.service", hostapi.LogQuery{Tail: 1000})
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, log)
				log.Close()
			}
		})
	}
	all.Wait()
	d.limit("nproc", "4096")
	d.running("late.service")
}
