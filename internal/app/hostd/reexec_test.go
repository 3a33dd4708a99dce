package hostd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// reexec has legiond execute itself and waits until the new one answers.
func (d *daemon) reexec() {
	d.t.Helper()
	before, err := d.client.Info(d.ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.client.Reexec(d.ctx); err != nil {
		d.t.Fatal(err)
	}
	for d.ctx.Err() == nil {
		now, err := d.client.Info(d.ctx)
		if err == nil && now.StartedAt.After(before.StartedAt) {
			if now.PID != before.PID {
				d.t.Fatalf("legiond was process %d and is %d", before.PID, now.PID)
			}
			return
		}
	}
	d.t.Fatal("no legiond has come back")
}

func (d *daemon) lines(name string) []string {
	d.t.Helper()
	r, err := d.client.Logs(d.ctx, name, hostapi.LogQuery{Tail: -1})
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		d.t.Fatal(err)
	}
	var out []string
	begun := ""
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			d.t.Fatalf("a log line is %q", line)
		}
		begun += f[3]
		if f[2] == "F" {
			out = append(out, begun)
			begun = ""
		}
	}
	return out
}

// TestReexec: legiond takes its own place again and again. Nothing is started
// anew, no line of output is lost or cut, a descriptor that a service has left
// is still there, and the exit status of what ended meanwhile is known.
func TestReexec(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, map[string]string{
		"talk.service":  "[Service]\nExecStart=/bin/sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; echo end; exec sleep 1000'\n",
		"store.service": "[Service]\nType=notify\nFileDescriptorStoreMax=1\nEnvironment=LEGION_TEST_DAEMON=store\nRestart=always\nRestartSec=0\nExecStart=" + exe + "\n",
		"seven.service": "[Service]\nExecStart=/bin/sh -c 'trap \"exit 7\" TERM; echo up; while :; do sleep 1000 & wait; done'\n",
	})
	for _, name := range []string{"seven.service", "store.service", "talk.service"} {
		d.must(name, "start")
	}
	d.said("seven.service", "up")
	stored, talks, seven := d.running("store.service"), d.running("talk.service"), d.running("seven.service")
	for range 5 {
		d.reexec()
	}
	if s := d.running("talk.service"); s.Main.PID != talks.Main.PID || s.Main.Number != talks.Main.Number || s.Restarts != 0 {
		t.Errorf("talk.service was %+v and is %+v", talks.Main, s.Main)
	}
	if err := syscall.Kill(seven.Main.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.reexec()
	s := d.until("seven.service", func(s service.Status) bool { return !s.State.Alive() })
	if s.Main.Exit == nil || s.Main.Exit.Unknown || s.Main.Exit.Code != 7 {
		t.Errorf("seven.service ended with %+v", s.Main.Exit)
	}
	kill(t, stored.Main.PID)
	s = d.until("store.service", func(s service.Status) bool { return s.State == service.Running && s.Restarts == 1 && s.Text != "" })
	if want := fmt.Sprintf("state true left by %d", stored.Main.PID); s.Text != want {
		t.Errorf("store.service finds %q, want %q", s.Text, want)
	}
	for deadline := time.Now().Add(patience); ; {
		lines := d.lines("talk.service")
		if n := len(lines); n == 0 || lines[n-1] != "end" {
			if time.Now().Before(deadline) {
				continue
			}
			t.Fatalf("%d lines, and no end", n)
		}
		for i, line := range lines[:len(lines)-1] {
			if want := fmt.Sprintf("line %d", i+1); line != want {
				t.Fatalf("line %d is %q", i+1, line)
			}
		}
		if len(lines) != 20001 {
			t.Errorf("%d lines", len(lines))
		}
		break
	}
}
