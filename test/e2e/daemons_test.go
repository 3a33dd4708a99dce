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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
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

// program is the path of one of the programs that make has built.
func (h *daemonHost) program(name string) string {
	dir := os.Getenv("LEGION_BIN")
	if dir == "" {
		dir, _ = filepath.Abs("../../bin")
	}
	return filepath.Join(dir, name)
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
	h.cmd = exec.Command("nsenter", "--net="+h.ns, h.program("legiond"), "--dir", h.dir, "--units", filepath.Join(h.dir, "units"))
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

// processes are those in the network namespace, legiond left out.
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
		if len(cmdline) > 0 && !strings.Contains(text, h.program("legiond")) {
			out[pid] = text
		}
	}
	return out
}

// legion runs a verb and gives its output.
func (h *daemonHost) legion(t *testing.T, args ...string) string {
	t.Helper()
	return daemonRun(t, h.program("legion"), append([]string{"-H", h.dir}, args...)...)
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

// stopped stops a unit: it is inactive, and none of its processes is left.
func (h *daemonHost) stopped(t *testing.T, unit string) {
	t.Helper()
	h.legion(t, "stop", unit)
	if left := h.processes(); len(left) > 0 {
		t.Errorf("%s left processes: %v", unit, left)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	g, err := h.client().Group(ctx, unit)
	if err != nil || g.ActiveState != "inactive" {
		t.Errorf("%s is %s (%v) after its stop: %+v", unit, g.ActiveState, err, g.Status)
	}
}

// dial connects inside the namespace.
func (h *daemonHost) dial(_ context.Context, network, address string) (net.Conn, error) {
	// A thread that cannot go back stays locked, and ends with its goroutine.
	runtime.LockOSThread()
	back, err := netns.Get()
	if err != nil {
		return nil, err
	}
	defer back.Close()
	ns, err := netns.GetFromPath(h.ns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return nil, err
	}
	c, err := net.DialTimeout(network, address, 5*time.Second)
	if netns.Set(back) == nil {
		runtime.UnlockOSThread()
	}
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

// created waits until a file appears in a directory.
func created(t *testing.T, dir, name string, patience time.Duration, begin func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	begin()
	if err := events.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return
		}
		if _, err := events.Read(buf); err != nil {
			t.Fatalf("%s did not appear in %s: %v", name, dir, err)
		}
	}
}

func TestDebianCron(t *testing.T) {
	h := daemonsOn(t, "cron.service")
	out := filepath.Join(h.dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	// Names in /etc/cron.d have no dot.
	table := "/etc/cron.d/" + filepath.Base(h.dir)
	job := fmt.Sprintf("* * * * * root echo done > %s/fired\n", out)
	if err := os.WriteFile(table, []byte(job), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(table) })
	h.legion(t, "start", "cron")
	h.killed(t, "cron.service")
	// cron looks at its tables once a minute.
	created(t, out, "fired", 130*time.Second, func() {})
	if err := os.Remove(table); err != nil {
		t.Fatal(err)
	}
	h.stopped(t, "cron.service")
}

func TestDebianSSH(t *testing.T) {
	h := daemonsOn(t, "ssh.service")
	h.legion(t, "start", "sshd") // by its alias
	// It has said that it is ready, so it listens.
	if err := h.banner(t); err != nil {
		t.Fatal(err)
	}
	user := fmt.Sprintf("legion%d", os.Getpid())
	login := h.sshUser(t, user)
	if out := login("id -un"); strings.TrimSpace(out) != user {
		t.Errorf("logged in by key, id -un says %q", out)
	}
	h.killed(t, "ssh.service")
	if out := login("echo back"); strings.TrimSpace(out) != "back" {
		t.Errorf("after the restart: %q", out)
	}
	before := h.run(t, "ssh.service")
	h.legion(t, "reload", "ssh")
	if out := login("echo again"); strings.TrimSpace(out) != "again" {
		t.Errorf("after the reload: %q", out)
	}
	if after := h.run(t, "ssh.service"); after.PID != before.PID {
		t.Errorf("the reload changed the main process from %d to %d", before.PID, after.PID)
	}
	// KillMode=process: a stop leaves sessions alone, so the last one must have
	// ended by itself.
	for deadline := time.Now().Add(20 * time.Second); len(h.processes()) > 1 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	h.stopped(t, "ssh.service")
}

// banner connects to sshd, which speaks first.
func (h *daemonHost) banner(t *testing.T) error {
	c, err := h.dial(t.Context(), "tcp", "127.0.0.1:22")
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	text := make([]byte, 64)
	n, err := c.Read(text)
	if err == nil && !strings.HasPrefix(string(text[:n]), "SSH-2.0-OpenSSH") {
		err = fmt.Errorf("the banner is %q", text[:n])
	}
	return err
}

// sshUser makes a user with a key, for as long as the test runs; the function
// runs a command as that user over ssh.
func (h *daemonHost) sshUser(t *testing.T, user string) func(command string) string {
	t.Helper()
	// On a machine that systemd has not booted, the file that keeps users out
	// until the boot is done may be there for ever (pam_nologin(8)).
	const nologin, aside = "/run/nologin", "/run/nologin.aside"
	if os.Rename(nologin, aside) == nil {
		t.Cleanup(func() { _ = os.Rename(aside, nologin) })
	}
	// The user may not read a directory of the test's.
	home := filepath.Join("/home", user)
	daemonRun(t, "useradd", "--create-home", "--home-dir", home, "--shell", "/bin/sh", "--password", "*", user)
	t.Cleanup(func() { daemonRun(t, "userdel", "--remove", user) })
	key := filepath.Join(h.dir, "key")
	daemonRun(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	authorized := filepath.Join(home, ".ssh", "authorized_keys")
	if err := os.MkdirAll(filepath.Dir(authorized), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(authorized, public, 0o600); err != nil {
		t.Fatal(err)
	}
	daemonRun(t, "chown", "-R", user+":", filepath.Dir(authorized))
	return func(command string) string {
		t.Helper()
		return daemonRun(t, "nsenter", "--net="+h.ns, "ssh", "-F", "/dev/null", "-i", key,
			"-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile="+filepath.Join(h.dir, "known_hosts"),
			// On SIGHUP sshd closes its socket and executes itself anew.
			"-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ConnectionAttempts=20", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes",
			user+"@127.0.0.1", command)
	}
}

func TestDebianApache(t *testing.T) {
	h := daemonsOn(t, "apache2.service")
	h.legion(t, "start", "apache2")
	const url = "http://127.0.0.1/"
	h.page(t, url, "<html")
	// A page that a new configuration brings; reload must not end the process.
	// It lies outside /tmp: the unit has PrivateTmp=, and a /tmp of its own.
	www, err := os.MkdirTemp("/srv", "legion-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(www) })
	if err := os.Chmod(www, 0o755); err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(www, "page.html")
	if err := os.WriteFile(page, []byte("served after a reload\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(h.dir)
	conf := filepath.Join("/etc/apache2/conf-enabled", name+".conf")
	text := fmt.Sprintf("Alias \"/%s\" \"%s\"\n<Directory \"%s\">\nRequire all granted\n</Directory>\n", name, page, www)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(conf) })
	before := h.run(t, "apache2.service")
	h.legion(t, "reload", "apache2")
	h.page(t, url+name, "served after a reload")
	if after := h.run(t, "apache2.service"); after.PID != before.PID {
		t.Errorf("the reload changed the main process from %d to %d", before.PID, after.PID)
	}

	h.killed(t, "apache2.service")
	h.page(t, url+name, "served after a reload")
	h.stopped(t, "apache2.service")
}

func TestDebianNodeExporter(t *testing.T) {
	h := daemonsOn(t, "prometheus-node-exporter.service")
	const unit, url = "prometheus-node-exporter.service", "http://127.0.0.1:9100/metrics"
	h.legion(t, "start", "prometheus-node-exporter")
	h.page(t, url, "node_cpu_seconds_total")
	pid := h.run(t, unit).PID
	st, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil || st.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Errorf("it runs as root, User=prometheus: %v", err)
	}
	h.killed(t, unit)
	h.page(t, url, "node_cpu_seconds_total")
	h.stopped(t, unit)
}

// TestDebianDaemonsOutliveLegiond: all four run at once, legiond is killed, and
// the one after it knows them again.
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
