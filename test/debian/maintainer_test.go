package debian

import (
	"os"
	"strings"
	"testing"
)

// maintainerScript installs cron as Debian ships it, upgrades, masks, removes and
// purges it. Each command must succeed.
const maintainerScript = `#!/bin/bash
set -euxo pipefail
not() { if "$@"; then exit 1; fi; } # set -e does not count a command behind !
export DPKG_FORCE=confnew
test -d /run/systemd/system
systemctl --version | grep '^systemd 252'
systemctl is-system-running

# The maintainer scripts enable and start it: deb-systemd-helper, deb-systemd-invoke.
dpkg --force-depends --purge cron
dpkg -i /debs/cron-daemon-common_*.deb
dpkg -i /debs/cron_*.deb
test "$(systemctl is-enabled cron)" = enabled
test -L /etc/systemd/system/multi-user.target.wants/cron.service
systemctl is-active cron
first=$(systemctl show --value -p MainPID cron.service)
test "$(cat /proc/$first/comm)" = cron

# An upgrade restarts it.
dpkg -i /debs/cron_*.deb
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
dpkg -i /debs/cron_*.deb
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

// maintain leads a package through all that dpkg does with it, with legion called
// as systemctl.
func (m *machine) maintain(t *testing.T) {
	m.write(t, "/run-test", maintainerScript)
	if err := os.Chmod(m.path("/run-test"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := m.run(t, "/run-test"); !strings.HasSuffix(out, "all is well\n") {
		t.Errorf("the scripts said:\n%s", out)
	}
}
