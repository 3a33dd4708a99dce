package hostd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// socketDaemon takes the socket that it was given and answers each connection
// with what it knows of itself.
func socketDaemon() {
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		fmt.Fprintf(c, "%d %s %s %v\n", os.Getpid(), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"), os.Getenv("LISTEN_PID") == fmt.Sprint(os.Getpid()))
		c.Close()
	}
}

// triggerUntil waits for the state of a timer, path or socket.
func (d *daemon) triggerUntil(name string, state service.TriggerState) service.TriggerStatus {
	d.t.Helper()
	var last service.TriggerStatus
	found := errors.New("found")
	err := d.client.Watch(d.ctx, func(ev hostapi.Event) error {
		if ev.Name != name || ev.Group == nil || ev.Group.Status.Trigger == nil {
			return nil
		}
		if last = *ev.Group.Status.Trigger; last.State == state {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		d.t.Fatalf("%s: waited in vain for %s (%v); it is %+v", name, state, err, last)
	}
	return last
}

// ask connects and reads one line.
func (d *daemon) ask(path string) string {
	d.t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// socketInode tells a socket from another one at the same path.
func socketInode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestSocketActivation(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	d := newDaemon(t, map[string]string{
		"s.socket":  "[Socket]\nListenStream=" + path + "\nFileDescriptorName=front\nRemoveOnStop=yes\n[Install]\nWantedBy=sockets.target\n",
		"s.service": "[Service]\nEnvironment=LEGION_TEST_DAEMON=socket\nExecStart=" + exe + "\n",
	})
	d.triggerUntil("s.socket", service.TriggerListening)
	answer := d.ask(path)
	s := d.running("s.service")
	if want := fmt.Sprintf("%d 1 front true", s.Main.PID); answer != want {
		t.Errorf("it answers %q, want %q", answer, want)
	}
	d.triggerUntil("s.socket", service.TriggerRunning)

	// The socket stays over the end of its service, and of legiond.
	d.must("s.service", "stop")
	d.triggerUntil("s.socket", service.TriggerListening)
	first := d.ask(path)
	d.crash()
	if again := d.ask(path); again != first {
		t.Errorf("without legiond it answers %q, before %q", again, first)
	}
	d.start()
	d.triggerUntil("s.socket", service.TriggerRunning)
	if again := d.ask(path); again != first {
		t.Errorf("after a crash of legiond it answers %q, before %q", again, first)
	}
	d.must("s.service", "stop")
	d.triggerUntil("s.socket", service.TriggerListening)
	before := socketInode(t, path)
	d.reexec()
	d.triggerUntil("s.socket", service.TriggerListening)
	if after := socketInode(t, path); after != before {
		t.Error("legiond took its own place and opened the socket anew")
	}
	d.ask(path)
	d.must("s.service", "stop")
	d.triggerUntil("s.socket", service.TriggerListening)
	d.crash() // while nobody else has the socket
	d.start()
	d.triggerUntil("s.socket", service.TriggerListening)
	d.ask(path)

	d.must("s.service", "stop")
	d.must("s.socket", "stop")
	if _, err := os.Lstat(path); err == nil {
		t.Error("the stopped socket is still there")
	}
}

func TestSocketOfAServiceThatTakesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := newDaemon(t, map[string]string{
		"s.socket":  "[Socket]\nListenStream=" + path + "\nTriggerLimitIntervalSec=1h\nTriggerLimitBurst=5\n",
		"s.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/true\n",
	})
	d.must("s.socket", "start")
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if st := d.triggerUntil("s.socket", service.TriggerFailed); !strings.Contains(st.Reason, "too often") {
		t.Errorf("the reason is %q", st.Reason)
	}
}

// TestSocketIsPutOff: what waits on a socket is not looked at more often than
// PollLimitBurst= says; the socket does not fail, and is looked at again.
// TestSocketThatWaitsForItsStop: what comes in meanwhile is refused, and starts
// nothing, which would undo the stop.
func TestSocketThatWaitsForItsStop(t *testing.T) {
	dir := t.TempDir()
	path, hold := filepath.Join(dir, "s"), filepath.Join(dir, "hold")
	if err := unix.Mkfifo(hold, 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, map[string]string{
		"s.socket":   "[Socket]\nListenStream=" + path + "\n",
		"s.service":  "[Unit]\nRequires=s.socket\n[Service]\nExecStart=/bin/sleep 1000\n",
		"up.service": "[Unit]\nAfter=s.socket\n[Service]\nExecStart=/bin/sleep 1000\nExecStop=/bin/sh -c 'read x <" + hold + "'\n",
	})
	d.must("s.socket", "start")
	d.must("up.service", "start")
	stopped := make(chan error, 2)
	for _, name := range []string{"up.service", "s.socket"} {
		go func() { stopped <- d.do(name, "stop") }()
		d.hasJob(name, "stop")
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is not refused: %d bytes, %v", n, err)
	}
	if err := os.WriteFile(hold, []byte("go on\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"s.socket", "s.service"} {
		if g, err := d.client.Group(d.ctx, name); err != nil || g.ActiveState != "inactive" {
			t.Errorf("%s is %s, %v", name, g.ActiveState, err)
		}
	}
}

// hasJob waits until the group has the job.
func (d *daemon) hasJob(name, kind string) {
	d.t.Helper()
	found := errors.New("found")
	err := d.client.Watch(d.ctx, func(ev hostapi.Event) error {
		if ev.Name == name && ev.Group != nil && ev.Group.Job != nil && ev.Group.Job.Type == kind {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		d.t.Fatalf("%s has no %s job: %v", name, kind, err)
	}
}

func TestSocketIsPutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := newDaemon(t, map[string]string{
		"s.socket":  "[Socket]\nListenStream=" + path + "\nPollLimitIntervalSec=500ms\nPollLimitBurst=2\n",
		"s.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/true\n",
	})
	d.must("s.socket", "start")
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var seen []time.Time
	enough := errors.New("enough")
	err = d.client.Watch(d.ctx, func(ev hostapi.Event) error {
		if ev.Name != "s.socket" || ev.Group == nil || ev.Group.Status.Trigger == nil {
			return nil
		}
		st := ev.Group.Status.Trigger
		if st.State == service.TriggerFailed {
			return errors.New(st.Reason)
		}
		if last := st.Last; !last.IsZero() && (len(seen) == 0 || last.After(seen[len(seen)-1])) {
			seen = append(seen, last)
		}
		if len(seen) == 7 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("%v, at %v", err, seen)
	}
	for i := range seen[2:] {
		if took := seen[i+2].Sub(seen[i]); took < 250*time.Millisecond {
			t.Errorf("it was looked at three times in %v: %v", took, seen)
		}
	}
}

func TestConnectionsHaveInstances(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := newDaemon(t, map[string]string{
		"cat.socket":   "[Socket]\nListenStream=" + path + "\nAccept=yes\nMaxConnections=2\n",
		"cat@.service": "[Service]\nStandardInput=socket\nExecStart=/bin/cat\n",
	})
	d.must("cat.socket", "start")
	talk := func() net.Conn {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	echo := func(c net.Conn) error {
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && line != "hello\n" {
			err = fmt.Errorf("it answers %q", line)
		}
		return err
	}
	a, b := talk(), talk()
	for _, c := range []net.Conn{a, b} {
		if err := echo(c); err != nil {
			t.Fatal(err)
		}
	}
	third := talk()
	if err := echo(third); err == nil {
		t.Error("a third connection is served; MaxConnections=2")
	}
	a.Close()
	b.Close()
	third.Close()
	// The instances end with their connections, and nothing is left of them.
	for {
		groups, err := d.client.Groups(d.ctx)
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, g := range groups {
			if strings.HasPrefix(g.Spec.Name, "cat@") {
				left++
			}
		}
		if left == 0 {
			break
		}
	}
	c := talk()
	defer c.Close()
	if err := echo(c); err != nil {
		t.Error(err)
	}
	if st := d.triggerUntil("cat.socket", service.TriggerListening); st.Accepted != 3 {
		t.Errorf("%d connections were handed over", st.Accepted)
	}
}

// TestConnectionsOfOneSource: one address does not take the connections of
// another.
func TestConnectionsOfOneSource(t *testing.T) {
	// An address of this process alone, on which nobody else takes the port.
	free, err := net.Listen("tcp", fmt.Sprintf("127.77.%d.%d:0", os.Getpid()>>8&0xff, os.Getpid()&0xff))
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	d := newDaemon(t, map[string]string{
		"cat.socket":   "[Socket]\nListenStream=" + address + "\nAccept=yes\nMaxConnectionsPerSource=1\n",
		"cat@.service": "[Service]\nStandardInput=socket\nExecStart=/bin/cat\n",
	})
	d.must("cat.socket", "start")
	served := func(from string) bool {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := dialer.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		// One that is dropped ends, or is reset as its line comes in.
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			return false
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		return line == "hello\n"
	}
	for i, want := range []bool{true, false, true} {
		from := []string{"127.0.0.1", "127.0.0.1", "127.0.0.2"}[i]
		if got := served(from); got != want {
			t.Errorf("connection %d, from %s: served is %t", i, from, got)
		}
	}
}

func TestPathUnits(t *testing.T) {
	dir := t.TempDir()
	d := newDaemon(t, map[string]string{
		"spool.path":     "[Path]\nDirectoryNotEmpty=" + dir + "/spool\nMakeDirectory=yes\n",
		"spool.service":  "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'cat " + dir + "/spool/* >>" + dir + "/out; rm " + dir + "/spool/*; :>" + dir + "/done'\n",
		"change.path":    "[Path]\nPathChanged=" + dir + "/done\nUnit=change.service\n",
		"change.service": "[Service]\nExecStart=/bin/sleep 1000\n",
	})
	d.must("change.path", "start")
	d.must("spool.path", "start")
	d.triggerUntil("spool.path", service.TriggerWaiting)
	// Made elsewhere, so that it comes at once.
	if err := os.WriteFile(filepath.Join(dir, "job"), []byte("work"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "job"), filepath.Join(dir, "spool", "job")); err != nil {
		t.Fatal(err)
	}
	d.running("change.service") // its path was changed by the other's service
	if out, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(out) != "work" {
		t.Errorf("the spool gave %q, %v", out, err)
	}
	d.triggerUntil("change.path", service.TriggerRunning)
	d.triggerUntil("spool.path", service.TriggerWaiting)
}

func TestTimerUnit(t *testing.T) {
	d := newDaemon(t, map[string]string{
		"t.timer":   "[Timer]\nOnActiveSec=10ms\nOnUnitInactiveSec=10ms\n",
		"t.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nExecStart=/bin/true\n",
	})
	d.must("t.timer", "start")
	d.until("t.service", func(s service.Status) bool { return s.Main != nil && s.Main.Number >= 3 })
	d.crash()
	d.start()
	d.until("t.service", func(s service.Status) bool { return s.Main != nil && s.Main.Number >= 6 })
}

// TestInitScript: a script that leaves a pid file is supervised like a unit.
func TestInitScript(t *testing.T) {
	etc := t.TempDir()
	pidFile := filepath.Join(etc, "pid")
	script := "#!/bin/sh\n# pidfile: " + pidFile + "\n### BEGIN INIT INFO\n# Provides: one\n# Short-Description: sleeps\n### END INIT INFO\n" +
		"case $1 in\nstart) sleep 1000 & echo $! >" + pidFile + " ;;\nstop) kill $(cat " + pidFile + ") ;;\n*) echo 'usage: {start|stop}' ;;\nesac\n"
	for _, dir := range []string{"init.d", "rc2.d"} {
		if err := os.Mkdir(filepath.Join(etc, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(etc, "init.d", "one"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../init.d/one", filepath.Join(etc, "rc2.d", "S01one")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LEGION_TEST_INITD", filepath.Join(etc, "init.d"))
	d := newDaemon(t, nil)
	d.must("one.service", "start")
	first := d.running("one.service")
	kill(t, first.Main.PID)
	second := d.until("one.service", func(s service.Status) bool { return s.State == service.Running && s.Restarts == 1 })
	if data, err := os.ReadFile(pidFile); err != nil || strings.TrimSpace(string(data)) != fmt.Sprint(second.Main.PID) {
		t.Errorf("the main process is %d, the pid file has %q, %v", second.Main.PID, data, err)
	}
	d.must("one.service", "stop")
}
