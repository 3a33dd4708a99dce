package hostd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/service"
)

// The tests run legiond as a process of its own: this binary, told so by its
// environment. Nothing in them waits by the clock; they wait for events.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		os.Exit(0)
	}
	if dir := os.Getenv("LEGION_TEST_DIR"); dir != "" {
		o := Options{Dir: dir, Units: []string{filepath.Join(dir, "units")}, Boot: "all", Initd: os.Getenv("LEGION_TEST_INITD"), Cgroup: os.Getenv("LEGION_TEST_CGROUP"), Essential: os.Getenv("LEGION_TEST_ESSENTIAL"), Memory: os.Getenv("LEGION_TEST_MEMORY")}
		if n, err := strconv.Atoi(os.Getenv("LEGION_TEST_CRASH")); err == nil {
			o.Point = crashAt(int64(n))
		}
		if err := Run(context.Background(), o, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, "legiond:", err)
			var exit Exit
			if errors.As(err, &exit) {
				os.Exit(exit.Code)
			}
			os.Exit(1)
		}
		os.Exit(0)
	}
	switch os.Getenv("LEGION_TEST_DAEMON") {
	case "notify":
		notifyDaemon()
	case "once":
		_, _ = notify.Send("READY=1\nSTATUS=said by one that is gone")
		os.Exit(0)
	case "late":
		lateDaemon()
	case "slow":
		slowDaemon()
	case "cat":
		_, _ = io.Copy(os.Stdout, os.Stdin)
		os.Exit(0)
	case "syslog":
		c, err := net.Dial("unixgram", "/dev/log")
		if err == nil {
			_, err = c.Write([]byte("<28>Nov  6 02:30:00 say: hello"))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		time.Sleep(time.Hour)
	case "socket":
		socketDaemon()
	case "store":
		storeDaemon()
	}
	os.Exit(m.Run())
}

// notifyDaemon is a Type=notify service; on SIGHUP it reloads.
func notifyDaemon() {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	if _, err := notify.Send("READY=1\nSTATUS=serving"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	for range hup {
		_, _ = notify.Send("RELOADING=1")
		_, _ = notify.Send("READY=1\nSTATUS=reloaded")
	}
}

// patience is how long anything may take on a machine that does much else; none
// of what the tests wait for takes long.
const patience = 3 * time.Minute

type daemon struct {
	t      *testing.T
	dir    string
	cgroup string
	as     *syscall.Credential // nil: as the test
	cmd    *exec.Cmd
	client *hostclient.Client
	ctx    context.Context
}

// newDaemon starts a legiond on a directory of its own.
func newDaemon(t *testing.T, units map[string]string) *daemon {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	d := &daemon{t: t, dir: t.TempDir(), ctx: ctx, cgroup: os.Getenv("LEGION_TEST_CGROUP")}
	if err := os.MkdirAll(filepath.Join(d.dir, "units"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range units {
		d.write(name, text)
	}
	d.client = hostclient.New(filepath.Join(d.dir, "host.sock"))
	t.Cleanup(func() {
		d.stop()
		cancel()
	})
	d.start()
	return d
}

func (d *daemon) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, "units", name), []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// start starts legiond and waits for its READY=1, as systemd would.
func (d *daemon) start() {
	d.t.Helper()
	sock, err := notify.Listen(filepath.Join(d.t.TempDir(), "notify"))
	if err != nil {
		d.t.Fatal(err)
	}
	defer sock.Close()
	d.cmd = exec.Command("/proc/self/exe")
	d.cmd.Env = append(os.Environ(), "LEGION_TEST_DIR="+d.dir, "LEGION_TEST_CGROUP="+d.cgroup, "NOTIFY_SOCKET="+sock.Address())
	d.cmd.Stderr = os.Stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: d.as}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	select {
	case m := <-sock.Messages():
		if m.Vars["READY"] != "1" {
			d.t.Fatalf("legiond said %v", m.Vars)
		}
	case <-d.ctx.Done():
		d.t.Fatal("legiond was not ready in time")
	}
}

// crash kills legiond as nothing but kill -9 can.
func (d *daemon) crash() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	_ = d.cmd.Wait()
}

func (d *daemon) stop() {
	if d.cmd == nil || d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- d.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			d.t.Errorf("legiond ended with %v", err)
		}
	case <-time.After(patience):
		d.t.Errorf("legiond did not stop")
		_ = d.cmd.Process.Kill()
	}
}

// until waits until the service is as want says, seeing every change.
func (d *daemon) until(name string, want func(service.Status) bool) service.Status {
	d.t.Helper()
	var last service.Status
	found := errors.New("found")
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	err := d.client.Watch(ctx, func(ev hostapi.Event) error {
		if ev.Name != name || ev.Group == nil || len(ev.Group.Status.Services) == 0 {
			return nil
		}
		if last = ev.Group.Status.Services[0]; want(last) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		d.t.Fatalf("%s: waited in vain (%v); it is %+v", name, err, last)
	}
	return last
}

// said waits until the service has written a line with the text.
func (d *daemon) said(name, text string) {
	d.t.Helper()
	// There is a log from its first process on.
	d.until(name, func(s service.Status) bool { return s.Main != nil && (s.Main.PID != 0 || s.Main.Exit != nil) })
	log, err := d.client.Logs(d.ctx, name, hostapi.LogQuery{Tail: -1, Follow: true})
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	for lines := bufio.NewScanner(log); lines.Scan(); {
		if strings.Contains(lines.Text(), text) {
			return
		}
	}
	d.t.Fatalf("%s has not said %q", name, text)
}

func in(state service.State) func(service.Status) bool {
	return func(s service.Status) bool { return s.State == state }
}

func (d *daemon) running(name string) service.Status {
	d.t.Helper()
	return d.until(name, in(service.Running))
}

func (d *daemon) do(name, verb string) error {
	_, err := d.client.Do(d.ctx, name, verb, true)
	return err
}

func (d *daemon) must(name, verb string) {
	d.t.Helper()
	if err := d.do(name, verb); err != nil {
		d.t.Fatalf("%s %s: %v", verb, name, err)
	}
}

func (d *daemon) put(g service.Group) {
	d.t.Helper()
	if _, err := d.client.Put(d.ctx, g); err != nil {
		d.t.Fatal(err)
	}
}

func shell(script string) []service.Command {
	return []service.Command{{Path: "/bin/sh", Argv: []string{"sh", "-c", script}}}
}

func pod(name, script string) service.Group {
	return service.Group{
		Name: name, Source: service.Source{Kind: service.FromPod}, Boot: true,
		Services: []service.Service{{
			Name: "main", Type: service.Exec, Start: shell(script), TimeoutStop: 5 * time.Second,
			Restart: service.Restart{
				Mode: service.RestartAlways, Backoff: &service.Backoff{Initial: 10 * time.Second, Max: 300 * time.Second, ResetAfter: 600 * time.Second},
			},
		}},
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func TestCrashOfADaemon(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(pod("pod-1", "exec sleep 1000"))
	first := d.running("pod-1")
	kill(t, first.Main.PID)
	second := d.until("pod-1", func(s service.Status) bool { return s.State == service.Running && s.Restarts == 1 })
	if second.Main.Number != 2 || second.Previous.Exit == nil || second.Previous.Exit.Signal != 9 {
		t.Errorf("the second run is %+v after %+v", second.Main, second.Previous)
	}
	if took := second.Main.Started.Sub(second.Previous.Exit.At); took >= 10*time.Second {
		t.Errorf("the first restart took %s: it has no back-off", took)
	}
	kill(t, second.Main.PID)
	waiting := d.until("pod-1", in(service.AutoRestart))
	if !strings.Contains(waiting.Reason, "back-off 10s restarting failed container") {
		t.Errorf("it waits with the reason %q", waiting.Reason)
	}
}

// TestCrashOfLegiond: no daemon notices; nothing is started twice; what ends
// meanwhile is seen.
func TestCrashOfLegiond(t *testing.T) {
	d := newDaemon(t, map[string]string{"unit.service": "[Service]\nExecStart=/bin/sleep 1000\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n"})
	d.put(pod("pod-1", "exec sleep 1000"))
	d.put(pod("pod-2", "trap 'exit 7' TERM; echo up; while :; do sleep 1000 & wait; done"))
	d.said("pod-2", "up")
	stays, ends, unit := d.running("pod-1"), d.running("pod-2"), d.running("unit.service")

	d.crash()
	d.start()
	for name, before := range map[string]service.Status{"pod-1": stays, "pod-2": ends, "unit.service": unit} {
		after := d.running(name)
		if after.Main.PID != before.Main.PID || after.Main.Number != before.Main.Number || after.Restarts != 0 {
			t.Errorf("%s was run %d pid %d, and is run %d pid %d", name, before.Main.Number, before.Main.PID, after.Main.Number, after.Main.PID)
		}
	}

	// The end of an adopted process is seen, with its status.
	if err := syscall.Kill(ends.Main.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	after := d.until("pod-2", func(s service.Status) bool { return s.Restarts == 1 && s.State == service.Running })
	exit := after.Previous.Exit
	if exit == nil || !exit.Unknown && exit.Code != 7 {
		t.Errorf("its end was %+v", exit)
	}

	// So is one that came while nobody watched.
	d.crash()
	waitGone(t, stays.Main.PID, func() { kill(t, stays.Main.PID) })
	d.start()
	after = d.until("pod-1", func(s service.Status) bool { return s.Restarts == 1 && s.State == service.Running })
	if after.Previous.Exit == nil || after.Previous.Number != 1 {
		t.Errorf("the run before is %+v", after.Previous)
	}
}

// waitGone lets f end a process and waits until it is gone.
func waitGone(t *testing.T, pid int, f func()) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	f()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n != 1 {
			t.Fatalf("process %d does not end", pid)
		}
		return
	}
}

// TestStopAndStartAgain: legiond stopped in good order starts what was wanted,
// from the disk, with run numbers that go on.
func TestStopAndStartAgain(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(pod("pod-1", "exec sleep 1000"))
	d.put(pod("pod-2", "exec sleep 1000"))
	first := d.running("pod-1")
	d.running("pod-2")
	d.must("pod-2", "stop")
	d.stop()
	if err := syscall.Kill(first.Main.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Fatalf("legiond has ended, and process %d lives on (%v)", first.Main.PID, err)
	}
	d.start()
	second := d.running("pod-1")
	if second.Main.Number <= first.Main.Number || second.Restarts != 1 {
		t.Errorf("run %d, %d restarts after run %d", second.Main.Number, second.Restarts, first.Main.Number)
	}
	if g, err := d.client.Group(d.ctx, "pod-2"); err != nil || g.ActiveState != "inactive" {
		t.Errorf("what was stopped by request is %s (%v)", g.ActiveState, err)
	}
}

func TestOneshot(t *testing.T) {
	d := newDaemon(t, nil)
	out := filepath.Join(d.dir, "out")
	say := func(s string) string { return "ExecStart=/bin/sh -c 'echo " + s + " >>" + out + "'\n" }
	d.write("good.service", "[Service]\nType=oneshot\nRemainAfterExit=yes\n"+say("one")+say("two")+"ExecStop=/bin/sh -c 'echo stop >>"+out+"'\n")
	d.write("bad.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'exit 4'\n"+say("never"))
	if _, err := d.client.Reload(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.must("good.service", "start")
	if g, _ := d.client.Group(d.ctx, "good.service"); g.SubState != "exited" || g.ActiveState != "active" {
		t.Errorf("it is %s (%s)", g.ActiveState, g.SubState)
	}
	d.must("good.service", "stop")
	if err := d.do("bad.service", "start"); err == nil || !strings.Contains(err.Error(), "exited with status 4") {
		t.Errorf("the start of bad.service gives %v", err)
	}
	got, _ := os.ReadFile(out)
	if want := "one\ntwo\nstop\n"; string(got) != want {
		t.Errorf("they wrote %q, want %q", got, want)
	}
}

func TestForking(t *testing.T) {
	d := newDaemon(t, nil)
	pidfile := filepath.Join(d.dir, "daemon.pid")
	d.write("f.service", "[Service]\nType=forking\nPIDFile="+pidfile+"\nExecStart=/bin/sh -c 'sleep 1000 & echo $! >"+pidfile+"'\nRestart=on-failure\nRestartSec=0\n")
	d.write("guess.service", "[Service]\nType=forking\nExecStart=/bin/sh -c 'sleep 1000 &'\n")
	if _, err := d.client.Reload(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.must("f.service", "start")
	first := d.running("f.service")
	data, _ := os.ReadFile(pidfile)
	if pid, _ := strconv.Atoi(strings.TrimSpace(string(data))); pid != first.Main.PID {
		t.Fatalf("the file says %d, legiond %d", pid, first.Main.PID)
	}
	d.crash()
	d.start()
	if again := d.running("f.service"); again.Main.PID != first.Main.PID {
		t.Fatalf("adopted as %d, was %d", again.Main.PID, first.Main.PID)
	}
	kill(t, first.Main.PID)
	d.until("f.service", func(s service.Status) bool { return s.State == service.Running && s.Restarts == 1 })
	d.must("f.service", "stop")

	d.must("guess.service", "start")
	if s := d.running("guess.service"); s.Main == nil || s.Main.PID == 0 {
		t.Errorf("the main process was not guessed: %+v", s)
	}
	d.must("guess.service", "stop")
}

// TestForkingEndsAtOnce: how a daemon has ended is known, also where that was
// before its starter ended, or just after.
func TestForkingEndsAtOnce(t *testing.T) {
	d := newDaemon(t, nil)
	// The starter is not a shell by then, which would collect the daemon.
	until := map[string]string{"before.service": "grep -q sleep /proc/$$$$/comm", "after.service": "[ ! -e /proc/$$$$/comm ]"}
	for name, end := range until {
		pidfile := filepath.Join(d.dir, name+".pid")
		d.write(name, "[Service]\nType=forking\nPIDFile="+pidfile+"\nExecStart=/bin/sh -c '(until "+end+"; do :; done; exit 3) & echo $! >"+pidfile+"; exec sleep 0.2'\n")
	}
	if _, err := d.client.Reload(d.ctx); err != nil {
		t.Fatal(err)
	}
	for name := range until {
		_ = d.do(name, "start") // it may have failed before it was up
		s := d.until(name, func(s service.Status) bool { return s.State == service.Failed })
		if s.Result != service.ExitCode || s.Main == nil || s.Main.Exit == nil || s.Main.Exit.Code != 3 {
			t.Errorf("%s ended with %s: %s (%+v)", name, s.Result, s.Reason, s.Main)
		}
	}
}

// TestForkingSuccessor: a daemon that puts another process in its place, and
// writes that into its PID file before it ends, goes on running.
func TestForkingSuccessor(t *testing.T) {
	d := newDaemon(t, nil)
	pidfile := filepath.Join(d.dir, "daemon.pid")
	start := "/bin/sh -c 'sleep 1000 & echo $! >" + pidfile + "'"
	d.write("f.service", "[Service]\nType=forking\nPIDFile="+pidfile+"\nExecStart="+start+"\nExecReload="+start+"\nExecReload=/bin/kill $MAINPID\n")
	if _, err := d.client.Reload(d.ctx); err != nil {
		t.Fatal(err)
	}
	d.must("f.service", "start")
	first := d.running("f.service")
	d.must("f.service", "reload")
	d.until("f.service", func(s service.Status) bool {
		return s.State == service.Running && s.Main != nil && s.Main.PID != first.Main.PID
	})
	second := d.running("f.service")
	if second.Main.Exit != nil || second.Restarts != 0 {
		t.Errorf("the successor is %+v", second)
	}
	kill(t, second.Main.PID)
	d.until("f.service", func(s service.Status) bool { return s.State == service.Failed })
}

// TestInstanceUnasked: an instance is told of before it is started.
func TestInstanceUnasked(t *testing.T) {
	d := newDaemon(t, map[string]string{"a@.service": "[Service]\nExecStart=/bin/sleep %i\n"})
	if g, err := d.client.Group(d.ctx, "a@1000.service"); err != nil || g.ActiveState != "inactive" || len(g.Spec.Services) != 1 {
		t.Errorf("%+v, %v", g, err)
	}
	if all, err := d.client.Groups(d.ctx); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := d.client.Group(d.ctx, "b@1000.service"); err == nil {
		t.Error("an instance of no template is there")
	}
	d.must("a@1000.service", "start")
	d.running("a@1000.service")
}

func TestNotify(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, map[string]string{
		"n.service":     "[Service]\nType=notify-reload\nEnvironment=LEGION_TEST_DAEMON=notify\nExecStart=" + exe + "\n",
		"never.service": "[Service]\nType=notify\nTimeoutStartSec=200ms\nExecStart=/bin/sleep 1000\n",
		"early.service": "[Service]\nType=notify\nExecStart=/bin/true\n",
	})
	d.must("n.service", "start")
	if s := d.running("n.service"); s.Text != "serving" {
		t.Errorf("its status is %q", s.Text)
	}
	d.must("n.service", "reload")
	d.until("n.service", func(s service.Status) bool { return s.State == service.Running && s.Text == "reloaded" })
	if err := d.do("never.service", "start"); err == nil || !strings.Contains(err.Error(), "no READY=1") {
		t.Errorf("a start without READY=1 gives %v", err)
	}
	if err := d.do("early.service", "start"); err == nil || !strings.Contains(err.Error(), "before it sent READY=1") {
		t.Errorf("an exit before READY=1 gives %v", err)
	}
}

// TestStopEscalates: a service that does not heed SIGTERM is killed, with all
// that it has started.
func TestStopEscalates(t *testing.T) {
	d := newDaemon(t, map[string]string{
		"deaf.service": "[Service]\nTimeoutStopSec=300ms\nExecStart=/bin/sh -c 'trap \"\" TERM; sleep 1000 & echo up; while :; do sleep 1000; done'\n",
	})
	d.must("deaf.service", "start")
	d.said("deaf.service", "up")
	d.must("deaf.service", "stop")
	s := d.until("deaf.service", in(service.Failed))
	if s.Result != service.Timeout || s.Main.Exit == nil || s.Main.Exit.Signal != 9 {
		t.Errorf("it ended with %s, %+v", s.Result, s.Main.Exit)
	}
	if s.Cgroup != "" {
		if data, err := os.ReadFile(filepath.Join(s.Cgroup, "cgroup.procs")); err == nil && len(data) > 0 {
			t.Errorf("processes are left: %s", data)
		}
	}
}

func TestDeleteIsForGood(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(pod("pod-1", "echo hello; exec sleep 1000"))
	s := d.running("pod-1")
	d.waitRemoved("pod-1", func() {
		if err := d.client.Delete(d.ctx, "pod-1", nil); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Kill(s.Main.PID, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d lives on", s.Main.PID)
	}
	if _, err := os.Stat(s.LogDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its log is still there: %v", err)
	}
	d.crash()
	d.start()
	if groups, err := d.client.Groups(d.ctx); err != nil || len(groups) != 0 {
		t.Errorf("after a crash there is %v (%v)", groups, err)
	}
}

// waitRemoved does f once the watch is under way, and waits for the end.
func (d *daemon) waitRemoved(name string, f func()) {
	d.t.Helper()
	found := errors.New("found")
	err := d.client.Watch(d.ctx, func(ev hostapi.Event) error {
		switch {
		case ev.Type == hostapi.Synced:
			f()
		case ev.Type == hostapi.Removed && ev.Name == name:
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		d.t.Fatalf("%s was not removed: %v", name, err)
	}
}

func TestSecondLegiond(t *testing.T) {
	d := newDaemon(t, nil)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LEGION_TEST_DIR="+d.dir)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another legiond (pid "+strconv.Itoa(d.cmd.Process.Pid)+")") {
		t.Errorf("a second legiond gives %v: %s", err, out)
	}
	if _, err := d.client.Info(d.ctx); err != nil {
		t.Errorf("and the first is disturbed: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	d := newDaemon(t, map[string]string{"u.service": "[Service]\nExecStart=/no/such/program\n"})
	for verb, want := range map[string]string{"start": "/no/such/program", "reload": "not active", "jump": "cannot be done"} {
		if err := d.do("u.service", verb); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v", verb, err)
		}
	}
	if err := d.client.Delete(d.ctx, "u.service", nil); err == nil || !strings.Contains(err.Error(), "units/u.service") {
		t.Errorf("the deletion of a unit gives %v", err)
	}
	if _, err := d.client.Put(d.ctx, service.Group{Name: "a/b"}); err == nil {
		t.Error("a group named a/b was taken")
	}
	if err := d.do("nobody.service", "start"); err == nil || !strings.Contains(err.Error(), "there is no group") {
		t.Errorf("an unknown unit gives %v", err)
	}
}
