// Package debian runs Debian's own daemons, from Debian's packages, under a
// legiond that is PID 1 of a machine made for the test: a copy of this one's
// root directory on which writing changes nothing, with processes, mounts,
// cgroups and a network of its own. That network is loopback alone, so whatever
// a package or a daemon sends reaches nobody, and nothing in there may set the
// clock. It runs with LEGION_E2E=1 (`make e2e`).
package debian

import (
	"context"
	"fmt"
	"net"
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
	"legion.dev/legion/internal/netns"
	"legion.dev/legion/test/built"
)

// stateDir is legiond's directory on the machine.
const stateDir = "/var/lib/legion"

// machine is what the daemons run on.
type machine struct {
	pid    int    // of its legiond, as this test sees it
	base   string // of this test; base/share is /share on the machine
	client *hostclient.Client
	cmd    *exec.Cmd
	// user: it has a user namespace of its own.
	user bool
}

// mountScript makes the machine below $BASE, in a mount namespace of its own,
// and becomes its legiond. What the packages need to know of the machine is
// that its name is its own, and that dpkg need not wait for a disk.
const mountScript = `set -eu
[ -z "$OWN" ] || mount -t tmpfs -o mode=0755 tmpfs "$FS"
mkdir "$FS/upper" "$FS/work" "$FS/root" "$FS/debs" "$FS/debswork"
mount -t overlay -o "lowerdir=$LOWER,upperdir=$FS/upper,workdir=$FS/work$OWN" overlay "$FS/root"
cd "$FS/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755,nosuid tmpfs dev
for n in null zero full random urandom tty; do touch dev/$n; mount --bind /dev/$n dev/$n; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
mkdir -p share old usr/local/bin debs
mount --bind "$BASE/share" share
[ -n "$OWN" ] || mount -t overlay -o "lowerdir=$DEBS,upperdir=$FS/debs,workdir=$FS/debswork" overlay debs
[ -n "$OWN" ] || cp "$BIN/legion" "$BIN/legiond" usr/local/bin/
rm -f usr/sbin/policy-rc.d var/lib/man-db/auto-update
echo legion-e2e >etc/hostname
printf '127.0.0.1 localhost legion-e2e\n::1 localhost\n' >etc/hosts
echo 'nameserver 127.0.0.1' >etc/resolv.conf
hostname legion-e2e
echo force-unsafe-io >etc/dpkg/dpkg.cfg.d/legion-e2e
ip link set lo up
pivot_root . old
cd /
umount -l /old
rmdir /old
exec setpriv --bounding-set=-sys_time,-wake_alarm,-sys_module,-sys_rawio --inh-caps=-sys_time,-wake_alarm,-sys_module,-sys_rawio \
	/usr/local/bin/legiond --dir ` + stateDir + ` --boot none
`

// newMachine boots a machine on which nothing runs but legiond.
func newMachine(t *testing.T, debs string) *machine {
	t.Helper()
	base, err := os.MkdirTemp("", "legion-d-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"fs", "share"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fs := filepath.Join(base, "fs")
	if err := unix.Mount("tmpfs", fs, "tmpfs", 0, "mode=0755"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	cmd := exec.Command("unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child", "sh", "-c", mountScript)
	cmd.Env = []string{"BIN=" + built.Dir(), "DEBS=" + debs, "FS=" + fs, "LOWER=/", "OWN="}
	m := &machine{base: base, cmd: cmd}
	m.boot(t, "legiond.log")
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if m.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
		t.Fatalf("there is no telling which process is the machine's PID 1: %v", err)
	}
	m.client = hostclient.New(m.path(stateDir + "/host.sock"))
	return m
}

// boot runs the machine's command until its legiond is ready.
func (m *machine) boot(t *testing.T, logName string) {
	t.Helper()
	ready := filepath.Join(m.base, "share", "ready")
	_ = os.Remove(ready)
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: ready, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notes.Close()
	if err := os.Chmod(ready, 0o777); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(m.base, logName))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := m.cmd
	cmd.Env = append(
		cmd.Env, "BASE="+m.base, "NOTIFY_SOCKET=/share/ready",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
	)
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cgroup := m.ownCgroup(t)
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(cgroup.Fd())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.end(t)
		if t.Failed() {
			data, _ := os.ReadFile(log.Name())
			t.Logf("legiond's log:\n%s", data)
		}
	})
	_ = notes.SetReadDeadline(time.Now().Add(time.Minute))
	for buf := make([]byte, 4096); ; {
		n, err := notes.Read(buf)
		if err != nil {
			data, _ := os.ReadFile(log.Name())
			t.Fatalf("legiond is not ready: %v\n%s", err, data)
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return
		}
	}
}

// ownCgroup makes a cgroup for the machine, below none of this one's.
func (m *machine) ownCgroup(t *testing.T) *os.File {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		dir := filepath.Join(f[1], filepath.Base(m.base))
		if m.user {
			dir += "-user"
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("cannot make a cgroup: %v", err)
		}
		t.Cleanup(func() { removeCgroup(t, dir) })
		if m.user {
			for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
				if err := os.Chown(filepath.Join(dir, name), firstID, firstID); err != nil {
					t.Fatal(err)
				}
			}
		}
		c, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	t.Skip("there is no cgroup2 here")
	return nil
}

// removeCgroup removes what is left of the machine's cgroups: the groups of
// processes that ended with their PID 1.
func removeCgroup(t *testing.T, dir string) {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	for _, d := range dirs {
		if err := os.Remove(d); err != nil {
			t.Errorf("cannot remove the machine's cgroup: %v", err)
		}
	}
}

// end stops the machine as a container runtime does, by SIGTERM to its PID 1.
func (m *machine) end(t *testing.T) {
	if m.cmd == nil {
		return
	}
	cmd, ended := m.cmd, make(chan error, 1)
	m.cmd = nil
	go func() { ended <- cmd.Wait() }()
	if m.pid != 0 {
		_ = syscall.Kill(m.pid, syscall.SIGTERM)
	} else {
		_ = cmd.Process.Kill()
	}
	select {
	case err := <-ended:
		if err != nil && m.pid != 0 {
			t.Errorf("the machine ended with %v", err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the machine did not end on SIGTERM")
		_ = syscall.Kill(m.pid, syscall.SIGKILL)
		_ = cmd.Process.Kill()
		<-ended
	}
}

// path is where a file of the machine is for this test.
func (m *machine) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, name) }

// write puts a file on the machine.
func (m *machine) write(t *testing.T, name, text string) {
	t.Helper()
	cmd := m.command(t.Context(), "sh", "-ec", `mkdir -p "$(dirname "$1")"; cat >"$1"`, "write", name)
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot write %s: %v\n%s", name, err, out)
	}
}

// command is one to run on the machine.
func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	user := "--cgroup"
	if m.user {
		user = "--user"
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", strconv.Itoa(m.pid), user, "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup", "--wdns=/",
		"setpriv", "--bounding-set=-sys_time,-wake_alarm,-sys_module,-sys_rawio", "--inh-caps=-sys_time,-wake_alarm,-sys_module,-sys_rawio",
	}, args...)...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/root",
		"LEGION_HOST=" + stateDir + "/host.sock", "DEBIAN_FRONTEND=noninteractive", "DEBCONF_NONINTERACTIVE_SEEN=true",
	}
	return cmd
}

// try runs a command on the machine.
func (m *machine) try(ctx context.Context, args ...string) (string, error) {
	out, err := m.command(ctx, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// run runs a command on the machine, which must succeed.
func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := m.try(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// show gives properties of a unit, as systemctl shows them.
func (m *machine) show(t *testing.T, unit, property string) string {
	t.Helper()
	return strings.TrimSpace(m.run(t, "systemctl", "show", "--value", "-p", property, unit))
}

// inside runs f in the machine's network.
func (m *machine) inside(f func() error) error {
	return netns.Within(fmt.Sprintf("/proc/%d/ns/net", m.pid), f)
}

// dial connects as a program on the machine would.
func (m *machine) dial(_ context.Context, network, address string) (c net.Conn, err error) {
	if network == "unix" {
		return net.DialTimeout(network, m.path(address), 10*time.Second)
	}
	err = m.inside(func() (err error) {
		c, err = net.DialTimeout(network, address, 10*time.Second)
		return err
	})
	return c, err
}

// listen serves on the machine.
func (m *machine) listen(t *testing.T, address string) (l net.Listener) {
	t.Helper()
	err := m.inside(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// groups are all units by name.
func (m *machine) groups(t *testing.T) map[string]hostapi.Group {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := m.client.Groups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]hostapi.Group{}
	for _, g := range list {
		out[g.Spec.Name] = g
	}
	return out
}
