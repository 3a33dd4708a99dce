package debian

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/hostapi"
)

// daemon is what one of Debian's packages ships, and how to ask it to do its
// work.
type daemon struct {
	unit     string
	packages []string
	// set is which of the sets of packages it is in: those that want the same
	// port, or each other's removal, are in different sets.
	set int
	// idle says why its installation need not start it; empty where it must.
	idle string
	// before is done before its installation.
	before func(t *testing.T, m *machine)
	// prepare writes the configuration without which it has nothing to do.
	prepare func(t *testing.T, m *machine)
	// ask has it do its work; it is asked until it does, for as long as a
	// daemon may take to open its sockets.
	ask func(t *testing.T, m *machine) error
	// stopMayFail says why its stop may count as a failure.
	stopMayFail string
	// notAsUser says why it cannot run, or is not there, where PID 1 has no rights
	// outside a user namespace.
	notAsUser string
	// with are the units that would start it again, to be stopped with it.
	with []string
	// noReload says why the reload that its unit has does not work.
	noReload string
	// again undoes what keeps ask from seeing the work of a later run.
	again func(t *testing.T, m *machine)
}

// TestDebian installs the packages, set after set, with Legion in systemd's
// place, and leads each daemon through its life.
func TestDebian(t *testing.T) {
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to install and run Debian's daemons")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: a machine made of namespaces and an overlay")
	}
	for _, program := range []string{"apt-get", "dpkg", "deb-systemd-invoke", "unshare", "nsenter", "setpriv", "pivot_root", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("there is no %s here", program)
		}
	}
	debs := download(t)
	downloadAnsible(t, debs)
	m := newMachine(t, debs)
	if _, err := os.Stat("/usr/bin/systemd-cat"); err == nil { // before Legion takes its place
		m.run(t, "cp", "/usr/bin/systemd-cat", "/usr/local/bin/debians-cat")
	}
	m.run(t, "legion", "install-as-systemd", "--force")
	t.Run("maintainer scripts", m.maintain)
	t.Run("ansible", m.ansible)
	t.Run("journal", m.speaks)
	chosen := func(d daemon) bool { // LEGION_DEBIAN may name units to look into, with commas
		only := os.Getenv("LEGION_DEBIAN")
		return only == "" || slices.Contains(strings.Split(only, ","), d.unit)
	}
	for set := range 1 + slices.MaxFunc(daemons, func(a, b daemon) int { return a.set - b.set }).set {
		var members []daemon
		for _, d := range daemons {
			if d.set == set && chosen(d) {
				members = append(members, d)
			}
		}
		if len(members) == 0 {
			continue
		}
		m.install(t, members)
		for _, d := range members {
			t.Run(strings.TrimSuffix(d.unit, ".service"), func(t *testing.T) { m.live(t, d) })
		}
		if slices.ContainsFunc(members, func(d daemon) bool { return d.unit == "avahi-daemon.service" }) {
			t.Run("bus activation", m.busActivation)
		}
	}
	t.Run("user", func(t *testing.T) {
		u := m.asUser(t)
		for _, d := range daemons {
			if !chosen(d) {
				continue
			}
			t.Run(strings.TrimSuffix(d.unit, ".service"), func(t *testing.T) {
				if d.notAsUser != "" {
					t.Skip(d.notAsUser)
				}
				u.live(t, d)
			})
		}
	})
}

// download fetches the packages with what they depend on, and gives the
// directory; it is kept, below the user's cache.
func download(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "legion", "debs")
	if err := os.MkdirAll(filepath.Join(dir, "partial"), 0o755); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for set := 0; ; set++ {
		names := packages(set)
		if len(names) == 0 {
			break
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		get := exec.CommandContext(ctx, "apt-get", append([]string{
			"-q", "-y", "-o", "APT::Sandbox::User=root", "-o", "Dir::Cache::archives=" + dir,
			"--no-install-recommends", "--download-only", "--reinstall", "install",
		}, names...)...)
		out, err := get.CombinedOutput()
		cancel()
		if err != nil {
			t.Skipf("the packages cannot be downloaded: %v\n%s", err, out)
		}
	}
	t.Logf("the packages are there after %v", time.Since(begin).Round(time.Second))
	return dir
}

func packages(set int) (names []string) {
	for _, d := range daemons {
		if d.set == set {
			names = append(names, d.packages...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// install has apt-get install packages of a set. Their maintainer scripts
// enable and start the units; all is down again when it returns.
func (m *machine) install(t *testing.T, members []daemon) {
	t.Helper()
	before := m.groups(t)
	begin := time.Now()
	var names []string
	for _, d := range members {
		if d.before != nil {
			d.before(t, m)
		}
		names = append(names, d.packages...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := m.try(ctx, append([]string{"apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=false", "-o", "Dir::Cache::archives=/debs", "--no-install-recommends", "--no-download", "--reinstall", "install"}, names...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d packages installed in %v", strings.Count(out, "\nSetting up "), time.Since(begin).Round(time.Second))
	after := m.groups(t)
	for _, d := range members {
		g, loaded := after[d.unit]
		if d.idle == "" && g.ActiveState != "active" {
			t.Errorf("the installation of %s has left %s (loaded: %v) %s: %+v\n%s", d.packages, d.unit, loaded, g.ActiveState, g.Status, m.lines(d.unit))
		}
	}
	for name, g := range after {
		if g.ActiveState == "failed" {
			t.Logf("%s has failed: %s", name, m.reason(t, name))
		}
	}
	m.down(t, before)
	if t.Failed() {
		t.Logf("apt-get said:\n%s", out)
	}
}

// down stops the units that were not up before.
func (m *machine) down(t *testing.T, before map[string]hostapi.Group) {
	t.Helper()
	var up []string
	for name, g := range m.groups(t) {
		if g.ActiveState != "inactive" && g.ActiveState != "failed" && before[name].ActiveState != g.ActiveState {
			up = append(up, name)
		}
	}
	if len(up) > 0 {
		slices.Sort(up)
		m.run(t, append([]string{"systemctl", "stop"}, up...)...)
	}
}

// live leads a daemon through its life: start, work, a kill, a reload, a stop.
func (m *machine) live(t *testing.T, d daemon) {
	begin := time.Now()
	if d.prepare != nil {
		d.prepare(t, m)
	}
	before, traces := m.groups(t), m.traces(t)
	m.run(t, "systemctl", "start", d.unit)
	defer func() {
		if t.Failed() {
			t.Logf("%s\n%s", m.reason(t, d.unit), m.lines(d.unit))
			m.down(t, before)
		}
	}()
	m.works(t, d)
	m.killed(t, d)
	if d.noReload == "" && m.show(t, d.unit, "CanReload") == "yes" {
		pid := m.show(t, d.unit, "MainPID")
		m.run(t, "systemctl", "reload", d.unit)
		m.works(t, d)
		if now := m.show(t, d.unit, "MainPID"); now != pid {
			t.Errorf("the reload has changed the main process from %s to %s", pid, now)
		}
	}
	m.run(t, append([]string{"systemctl", "stop", d.unit}, d.with...)...)
	if g := m.groups(t)[d.unit]; g.ActiveState != "inactive" && (d.stopMayFail == "" || g.ActiveState != "failed") {
		t.Errorf("after its stop it is %s: %s", g.ActiveState, m.reason(t, d.unit))
	}
	m.down(t, before)
	left := m.left(t, traces)
	// KillMode=process: sessions are left alone, and end by themselves.
	if m.show(t, d.unit, "KillMode") == "process" {
		for end := time.Now().Add(time.Minute); len(left) > 0 && time.Now().Before(end); left = m.left(t, traces) {
			time.Sleep(20 * time.Millisecond)
		}
	}
	for _, trace := range left {
		t.Errorf("its stop has left %s", trace)
	}
	t.Logf("all of it in %v", time.Since(begin).Round(10*time.Millisecond))
}

// works asks the daemon until it does its work: of the moment when it opens its
// sockets nothing tells.
func (m *machine) works(t *testing.T, d daemon) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := d.ask(t, m)
		if err == nil {
			return
		}
		if state := m.groups(t)[d.unit].ActiveState; time.Now().After(deadline) || state == "failed" || state == "inactive" {
			t.Fatalf("%s is %s and does not do its work: %v", d.unit, state, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// killed kills the main process. A unit with Restart= comes back and works;
// another one has failed, says why, and can be started again.
func (m *machine) killed(t *testing.T, d daemon) {
	t.Helper()
	if d.again != nil {
		d.again(t, m)
	}
	old := m.show(t, d.unit, "MainPID")
	if old == "0" {
		t.Fatalf("there is no main process: %s", m.reason(t, d.unit))
	}
	m.run(t, "kill", "-KILL", old)
	if restart := m.show(t, d.unit, "Restart"); restart == "no" || restart == "on-success" {
		m.becomes(t, d.unit, func(g *hostapi.Group) bool { return g.ActiveState == "failed" })
		if s := m.groups(t)[d.unit].Status.Services[0]; s.Result != "signal" || !strings.Contains(s.Reason, "KILL") {
			t.Errorf("the reason of its failure is %q, %q", s.Result, s.Reason)
		}
		m.run(t, "systemctl", "start", d.unit)
	} else {
		m.becomes(t, d.unit, func(g *hostapi.Group) bool {
			return g.ActiveState == "active" && g.Status.Services[0].Restarts == 1
		})
	}
	m.works(t, d)
	if now := m.show(t, d.unit, "MainPID"); now == "0" || now == old {
		t.Errorf("the main process was %s and is %s", old, now)
	}
}

var errSeen = errors.New("seen")

// becomes waits until the unit is as is says.
func (m *machine) becomes(t *testing.T, unit string, is func(*hostapi.Group) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	err := m.client.Watch(ctx, func(ev hostapi.Event) error {
		if ev.Name == unit && ev.Group != nil && is(ev.Group) {
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		t.Fatalf("%s did not become as wanted: %v: %s", unit, err, m.reason(t, unit))
	}
}

// reason is why the unit is in its state.
func (m *machine) reason(t *testing.T, unit string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := m.try(ctx, "legion", "explain", unit)
	if err != nil {
		return err.Error()
	}
	return out
}

// lines are the last that the unit has written.
func (m *machine) lines(unit string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, _ := m.try(ctx, "legion", "logs", "-n", "40", unit)
	return out
}
