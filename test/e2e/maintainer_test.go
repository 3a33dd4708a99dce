package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// maintainerScript runs as a unit of a legiond that is PID 1: it installs cron
// as Debian ships it, and removes it again. Each command must succeed.
const maintainerScript = `#!/bin/bash
set -euxo pipefail
not() { if "$@"; then exit 1; fi; } # set -e does not count a command behind !
export DEBIAN_FRONTEND=noninteractive DPKG_FORCE=confnew PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
legion install-as-systemd --force
test -d /run/systemd/system
systemctl --version | grep '^systemd 252'
systemctl is-system-running

# The maintainer scripts enable and start it: deb-systemd-helper, deb-systemd-invoke.
dpkg --force-depends --purge cron
dpkg -i /debs/*.deb
test "$(systemctl is-enabled cron)" = enabled
test -L /etc/systemd/system/multi-user.target.wants/cron.service
systemctl is-active cron
first=$(systemctl show --value -p MainPID cron.service)
test "$(cat /proc/$first/comm)" = cron

# An upgrade restarts it.
dpkg -i /debs/*.deb
systemctl --quiet is-active cron
second=$(systemctl show --value -p MainPID cron.service)
test "$first" != "$second"

# The other ways to it.
invoke-rc.d cron restart
test "$second" != "$(systemctl show --value -p MainPID cron.service)"
service cron status | grep 'Active: active (running)'
service cron stop
not systemctl is-active cron
deb-systemd-invoke start cron.service
systemctl is-active cron
systemctl disable --now cron
not systemctl is-enabled cron
deb-systemd-invoke start cron.service 2>&1 | grep 'disabled or a static unit'
not systemctl is-active cron
systemctl enable --now cron
journalctl -u cron --no-pager -n 5

# Masked, an installation does not start it.
systemctl mask --now cron
dpkg -i /debs/*.deb
not systemctl is-active cron
systemctl unmask cron
systemctl start cron

# Removed, it is down; purged, nothing is left.
dpkg --force-depends --remove cron
not systemctl is-active cron
dpkg --force-depends --purge cron
test ! -e /etc/systemd/system/multi-user.target.wants/cron.service
echo all is well
`

const maintainerUnit = `[Service]
Type=oneshot
ExecStart=/run-test
Environment=LEGION_HOST=/var/lib/legion-e2e/host.sock
StandardOutput=file:/result
StandardError=file:/result
`

// TestMaintainerScripts installs, upgrades, masks and removes a package in a
// copy of this machine's file system, with legion called as systemctl.
func TestMaintainerScripts(t *testing.T) {
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to install a Debian package in a container")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: an overlay of the root directory and namespaces")
	}
	for _, program := range []string{"apt-get", "dpkg", "deb-systemd-invoke", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("there is no %s here", program)
		}
	}
	base := t.TempDir()
	if err := syscall.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(base, syscall.MNT_DETACH) })
	at := func(parts ...string) string { return filepath.Join(append([]string{base}, parts...)...) }
	for _, d := range []string{"upper", "work", "root", "upper/debs", "upper/run", "upper/tmp", "upper/units", "upper/usr/local/bin"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(at("upper/tmp"), 0o1777); err != nil {
		t.Fatal(err)
	}
	get := exec.Command("apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", "cron", "cron-daemon-common")
	get.Dir = at("upper/debs")
	if out, err := get.CombinedOutput(); err != nil {
		t.Skipf("cron cannot be downloaded: %v\n%s", err, out)
	}
	for _, p := range []string{"legion", "legiond"} {
		data, err := os.ReadFile(filepath.Join(binDir(), p))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at("upper/usr/local/bin", p), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at("upper/units/maintainer.service"), maintainerUnit)
	if err := os.WriteFile(at("upper/run-test"), []byte(maintainerScript), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("overlay", at("root"), "overlay", 0, "lowerdir=/,upperdir="+at("upper")+",workdir="+at("work")); err != nil {
		t.Skipf("cannot put an overlay over the root directory: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(at("root"), syscall.MNT_DETACH) })
	_ = os.Remove(at("root/usr/sbin/policy-rc.d")) // of the machine, where there is one

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// No network but loopback, processes and mounts of its own; legiond is PID 1.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--root", at("root"),
		"/usr/local/bin/legiond", "--dir", "/var/lib/legion-e2e", "--cgroup", "none", "--boot", "none", "--essential", "maintainer.service",
		"--units", "/units", "--units", "/etc/systemd/system", "--units", "/run/systemd/system", "--units", "/lib/systemd/system")
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LEGION_HOST=/var/lib/legion-e2e/host.sock")
	out, err := cmd.CombinedOutput()
	result, _ := os.ReadFile(at("root/result"))
	if err != nil {
		t.Fatalf("the scripts failed: %v\nlegiond said:\n%s\nthe scripts said:\n%s", err, out, result)
	}
	says(t, string(result), "all is well")
}
