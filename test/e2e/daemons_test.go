package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/keeper"
	"legion.dev/legion/internal/netns"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/test/built"
)

// debianUnits are the packaged units that the tests run, unmodified.
const debianUnits = "/lib/systemd/system"

// daemonHost is a legiond in a network namespace with nothing but loopback, on
// links to packaged units.
type daemonHost struct {
	dir   string
	ns    string // path of the network namespace
	cmd   *exec.Cmd
	ended chan error
}

// daemonsOn starts a legiond for packaged units, and skips the test where one
// of them is not installed.
func daemonsOn(t *testing.T, units ...string) *daemonHost {
	t.Helper()
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to run the distribution's daemons")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: the distribution's daemons and a network namespace")
	}
	// The path of a socket is at most 107 bytes long.
	dir, err := os.MkdirTemp("", "legion-d-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Mkdir(filepath.Join(dir, "units"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		file := filepath.Join(debianUnits, u)
		if _, err := os.Stat(file); err != nil {
			t.Skipf("%s is not installed: %v", u, err)
		}
		if err := os.Symlink(file, filepath.Join(dir, "units", u)); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Base(dir)
	h := &daemonHost{dir: dir, ns: "/run/netns/" + name}
	daemonRun(t, "ip", "netns", "add", name)
	t.Cleanup(func() { daemonRun(t, "ip", "netns", "delete", name) })
	daemonRun(t, "ip", "-n", name, "link", "set", "lo", "up")
	h.start(t)
	t.Cleanup(func() { h.end(t) })
	return h
}

func daemonRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start runs legiond and waits until it is ready.
func (h *daemonHost) start(t *testing.T) {
	t.Helper()
	path := filepath.Join(h.dir, "ready")
	_ = os.Remove(path)
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notes.Close()
	log, err := os.OpenFile(filepath.Join(h.dir, "legiond.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// Not "ip netns exec": it would put a /sys without cgroups into place.
	h.cmd = exec.Command("nsenter", "--net="+h.ns, filepath.Join(built.Dir(), "legiond"), "--dir", h.dir, "--units", filepath.Join(h.dir, "units"))
	h.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	h.cmd.Stdout, h.cmd.Stderr = log, log
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.ended = make(chan error, 1)
	go func(c *exec.Cmd, ended chan error) { ended <- c.Wait() }(h.cmd, h.ended)
	_ = notes.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 4096)
	for {
		n, err := notes.Read(buf)
		if err != nil {
			data, _ := os.ReadFile(filepath.Join(h.dir, "legiond.log"))
			t.Fatalf("legiond is not ready: %v\n%s", err, data)
		}
		if strings.Contains("\n"+string(buf[:n]), "\nREADY=1") {
			return
		}
	}
}

// end stops everything; nothing may be left.
func (h *daemonHost) end(t *testing.T) {
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(100 * time.Second):
		t.Error("legiond did not end on SIGTERM")
		_ = h.cmd.Process.Kill()
	}
	if left := h.processes(); len(left) > 0 {
		t.Errorf("processes are left in the namespace: %v", left)
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if t.Failed() {
		data, _ := os.ReadFile(filepath.Join(h.dir, "legiond.log"))
		t.Logf("legiond's log:\n%s", data)
	}
}

// processes are those in the network namespace; legiond, and what keeps its files
// open, is left out.
func (h *daemonHost) processes() map[int]string {
	var own unix.Stat_t
	out := map[int]string{}
	if unix.Stat(h.ns, &own) != nil {
		return out
	}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		var st unix.Stat_t
		if err != nil || pid == os.Getpid() || unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil || st.Ino != own.Ino {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		text := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if len(cmdline) > 0 && !strings.Contains(text, filepath.Join(built.Dir(), "legiond")) && !strings.HasPrefix(text, keeper.Argv0) {
			out[pid] = text
		}
	}
	return out
}

// legion runs a verb and gives its output.
func (h *daemonHost) legion(t *testing.T, args ...string) string {
	t.Helper()
	return daemonRun(t, filepath.Join(built.Dir(), "legion"), append([]string{"-H", h.dir}, args...)...)
}

func (h *daemonHost) client() *hostclient.Client {
	return hostclient.New(filepath.Join(h.dir, "host.sock"))
}

// run gives the main process of a unit.
func (h *daemonHost) run(t *testing.T, unit string) service.Run {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	g, err := h.client().Group(ctx, unit)
	if err != nil {
		t.Fatal(err)
	}
	m := g.Status.Services[0].Main
	if m == nil || m.PID == 0 || m.Exit != nil {
		t.Fatalf("%s has no main process: %+v", unit, g.Status.Services[0])
	}
	return *m
}

var errDaemonSeen = errors.New("seen")

// killed kills the main process of a unit and waits until a later run of it is
// up.
func (h *daemonHost) killed(t *testing.T, unit string) {
	t.Helper()
	old := h.run(t, unit)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := syscall.Kill(old.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var last service.Status
	err := h.client().Watch(ctx, func(ev hostapi.Event) error {
		if ev.Name != unit || ev.Group == nil {
			return nil
		}
		last = ev.Group.Status.Services[0]
		if last.State == service.Running && last.Main != nil && last.Main.PID != old.PID && last.Restarts == 1 {
			return errDaemonSeen
		}
		return nil
	})
	if !errors.Is(err, errDaemonSeen) {
		t.Fatalf("%s did not come back after SIGKILL: %v; seen last: %+v", unit, err, last)
	}
	t.Logf("%s is up again %v after SIGKILL", unit, time.Since(begin).Round(time.Millisecond))
}

// dial connects inside the namespace.
func (h *daemonHost) dial(_ context.Context, network, address string) (c net.Conn, err error) {
	err = netns.Within(h.ns, func() (err error) {
		c, err = net.DialTimeout(network, address, 5*time.Second)
		return err
	})
	return c, err
}

// page fetches a page until it is as wanted; a server that has just started
// refuses connections for a moment, of which nothing tells the end.
func (h *daemonHost) page(t *testing.T, url, want string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DialContext: h.dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
	deadline := time.Now().Add(20 * time.Second)
	for {
		var body []byte
		resp, err := client.Get(url)
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusOK && bytes.Contains(body, []byte(want)) {
			return string(body)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not say %q: %v\n%.500s", url, want, err, body)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestDebianDaemonsOutliveLegiond: four of Debian's daemons, each of which
// test/debian leads through its life, run at once; legiond is killed, and the one
// after it knows them again.
func TestDebianDaemonsOutliveLegiond(t *testing.T) {
	units := []string{"apache2.service", "cron.service", "prometheus-node-exporter.service", "ssh.service"}
	h := daemonsOn(t, units...)
	h.legion(t, append([]string{"start"}, units...)...)
	before := map[string]service.Run{}
	for _, u := range units {
		before[u] = h.run(t, u)
	}
	all := len(h.processes())
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-h.ended
	h.page(t, "http://127.0.0.1/", "<html")
	h.start(t)
	for _, u := range units {
		if now := h.run(t, u); now.PID != before[u].PID || now.Number != before[u].Number {
			t.Errorf("%s was run %+v and is %+v", u, before[u], now)
		}
	}
	if now := h.processes(); len(now) < all-1 { // one of sshd's or apache's may have come or gone
		t.Errorf("there were %d processes, now: %v", all, now)
	}
	// Not apache2: its start script takes a dead process for a living one until
	// the machine's PID 1, whose child it is now, has reaped it.
	h.killed(t, "prometheus-node-exporter.service")
	h.page(t, "http://127.0.0.1:9100/metrics", "node_cpu_seconds_total")
	slices.Reverse(units)
	h.legion(t, append([]string{"stop"}, units...)...)
	if left := h.processes(); len(left) > 0 {
		t.Errorf("left after the stop: %v", left)
	}
}
