package hostd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/service"
)

// crashAt ends this process by SIGKILL at the n-th moment between two effects.
func crashAt(n int64) func(string) {
	var seen atomic.Int64
	return func(what string) {
		if seen.Add(1) == n {
			fmt.Fprintln(os.Stderr, "chaos:", what)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}

// slowDaemon is a Type=notify service that is ready after a while, when legiond
// may be away, and then tells how often it has told its status.
func slowDaemon() {
	time.Sleep(300 * time.Millisecond)
	_, _ = notify.Send("READY=1")
	for n := 1; ; n++ {
		_, _ = notify.Send(fmt.Sprintf("STATUS=%d", n))
		time.Sleep(10 * time.Millisecond)
	}
}

// TestChaos ends legiond at one moment after the other, between any two things
// that it does, and always starts it again. Nothing may be lost, doubled or left
// behind: no process, no line that one has written, no file that one has left, and
// no daemon that was ready while nobody heard it. LEGION_CHAOS_POINTS and LEGION_CHAOS_SEED say how often
// and which; `make chaos` ends it 2,000 times.
func TestChaos(t *testing.T) {
	number := func(name string, usual int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return usual
	}
	points, seed := number("LEGION_CHAOS_POINTS", 60), number("LEGION_CHAOS_SEED", 1)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	dir := t.TempDir()
	twice := filepath.Join(dir, "twice")
	// Each holds a lock while it runs, with a child beside it.
	script := func(i int, last string) string {
		return fmt.Sprintf("exec 9>%s/lock%d; flock -n -E 75 9; [ $$? -ne 75 ] || echo service %d pid $$$$ >>%s; sleep 30.%d & %s", dir, i, i, twice, os.Getpid()%100000, last)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const head = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=0\nRestart=always\n"
	install := "\n[Install]\nWantedBy=multi-user.target\n"
	d := newDaemon(t, map[string]string{
		"s0.service":    head + "ExecStart=/bin/sh -c '" + script(0, "sleep 0.01") + "'" + install,
		"s1.service":    head + "ExecStartPre=/bin/true\nExecStopPost=/bin/true\nExecStart=/bin/sh -c '" + script(1, "sleep 0.02; kill -9 $$$$") + "'" + install,
		"s2.service":    head + "Type=forking\nTimeoutStartSec=5\nPIDFile=" + dir + "/pid\nExecStart=/bin/sh -c 'sleep 0.0$$(($$$$%4)); (" + script(2, "sleep 0.03") + ") & echo $! >" + dir + "/pid'" + install,
		"s3.service":    head + "ExecStart=/bin/sh -c '" + script(3, "exec sleep 1000") + "'" + install,
		"lines.service": head + "ExecStart=/bin/sh -c 'i=0; while :; do i=$$((i+1)); echo line $$i; [ $$((i%%50)) -ne 0 ] || sleep 0.01; done'" + install,
		"store.service": head + "Type=notify\nFileDescriptorStoreMax=1\nEnvironment=LEGION_TEST_DAEMON=store\nExecStart=" + exe + install,
		"ready.service": head + "Type=notify\nTimeoutStartSec=5\nEnvironment=LEGION_TEST_DAEMON=slow\nExecStart=" + exe + install,
	})
	// A hang-up or an end of input would end these.
	d.put(readsFrom("tty", "exec cat", service.Console{Stdin: true, Terminal: true}))
	d.put(readsFrom("pipe", "exec cat", service.Console{Stdin: true, Once: true}))
	again := readsFrom("again", "echo again; sleep 0.02", service.Console{Stdin: true, Terminal: true})
	again.Services[0].Restart = service.Restart{Mode: service.RestartAlways}
	d.put(again)
	steady := map[string]service.Status{}
	for _, name := range []string{"s3.service", "lines.service", "tty", "pipe"} {
		steady[name] = d.running(name)
	}
	steady["ready.service"] = d.until("ready.service", func(s service.Status) bool { return s.Main != nil && s.Main.PID != 0 })
	steady["store.service"] = d.until("store.service", func(s service.Status) bool { return s.Text != "" })
	d.crash()
	hits := 0
	for range points {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "LEGION_TEST_DIR="+d.dir, "LEGION_TEST_CGROUP="+d.cgroup, fmt.Sprintf("LEGION_TEST_CRASH=%d", 1+random.IntN(60)))
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(patience, func() {
			t.Errorf("moment %d does not come", hits)
			d.tell()
			_ = cmd.Process.Kill()
		})
		err := cmd.Wait()
		timer.Stop()
		if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
			t.Fatalf("legiond ended with %v", err)
		}
		if t.Failed() {
			t.FailNow()
		}
		hits++
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	d.ctx = ctx // the first one's time may be over
	d.start()
	if data, err := os.ReadFile(twice); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("two of one service at a time: %s (%v)", data, err)
	}
	for name, before := range steady {
		if s := d.running(name); s.Main.PID != before.Main.PID || s.Main.Number != before.Main.Number {
			t.Errorf("%s was %+v and is %+v", name, before.Main, s.Main)
		}
	}
	a := d.attach("tty")
	a.say("typed\n")
	a.until("typed\r\ntyped\r\n") // the terminal's echo, and cat's
	a = d.attach("pipe")
	a.say("piped\n")
	d.said("pipe", "piped")
	text := d.until("ready.service", func(s service.Status) bool { return s.Text != "" }).Text
	d.until("ready.service", func(s service.Status) bool { return s.Text > text || len(s.Text) > len(text) })
	kill(t, steady["store.service"].Main.PID)
	if s := d.until("store.service", func(s service.Status) bool { return s.Restarts == 1 && s.Text != "" }); s.Text != fmt.Sprintf("state true left by %d", steady["store.service"].Main.PID) {
		t.Errorf("the next run of store.service finds %q", s.Text)
	}
	for i := range 3 {
		name := fmt.Sprintf("s%d.service", i)
		// Not by its main processes: s2's may always end before legiond finds it.
		before := d.until(name, func(service.Status) bool { return true })
		timer := time.AfterFunc(patience/2, d.tell)
		d.until(name, func(s service.Status) bool { return s.Restarts > before.Restarts+1 })
		timer.Stop()
	}
	d.inOrder("lines.service")
	d.stop()
	if left := processesWith(t, fmt.Sprintf("30.%d", os.Getpid()%100000)); len(left) > 0 {
		t.Errorf("left behind after everything was stopped: %v", left)
	}
	t.Logf("ended at %d moments", hits)
}

// inOrder checks that the log of a service holds each of its numbered lines
// once.
func (d *daemon) inOrder(name string) {
	d.t.Helper()
	log, err := d.client.Logs(d.ctx, name, hostapi.LogQuery{Tail: -1})
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	lines := bufio.NewScanner(log)
	next := 0
	for lines.Scan() {
		_, text, _ := strings.Cut(lines.Text(), " F line ")
		n, err := strconv.Atoi(text)
		if next == 0 {
			next = n // files are turned over
		}
		if err != nil || n != next {
			d.t.Fatalf("where line %d should be there is %q", next, lines.Text())
		}
		next++
	}
	if err := lines.Err(); err != nil || next < 100 {
		d.t.Errorf("%d lines, %v", next, err)
	}
	d.t.Logf("%d lines", next)
}

// tell says how everything stands, for people who look into a failure.
func (d *daemon) tell() {
	groups, err := d.client.Groups(context.Background())
	if err != nil {
		d.t.Error(err)
	}
	for _, g := range groups {
		for _, s := range g.Status.Services {
			pid := 0
			if s.Main != nil {
				pid = s.Main.PID
			}
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			procs, _ := os.ReadFile(filepath.Join(s.Cgroup, "cgroup.procs"))
			d.t.Errorf("%s is %s since %s (%s): process %d (%.40s) of %s", s.Name, s.State, s.Since, s.Reason, pid, stat, strings.Fields(string(procs)))
		}
	}
}

// processesWith lists the processes that have the word on their command line.
func processesWith(t *testing.T, word string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		data, _ := os.ReadFile(f)
		if strings.Contains(string(data), word+"\x00") {
			out = append(out, f+" "+strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return out
}
