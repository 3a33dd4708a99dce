package debian

import (
	"errors"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// busActivation calls avahi while it is down: the bus has legiond start it. Where
// its unit may not start, the caller is told so.
func (m *machine) busActivation(t *testing.T) {
	const unit, socket = "avahi-daemon.service", "avahi-daemon.socket"
	before := m.groups(t)
	call := func() error {
		return m.busCall(t, "org.freedesktop.Avahi", "/", "org.freedesktop.Avahi.Server.GetHostName", "legion-e2e", 0)
	}
	m.run(t, "systemctl", "start", "dbus.service")
	m.run(t, "systemctl", "stop", unit, socket)
	if err := call(); err != nil {
		t.Errorf("a call of what is down: %v", err)
	}
	if g := m.groups(t)[unit]; g.ActiveState != "active" {
		t.Errorf("after it was called it is %s: %s", g.ActiveState, m.reason(t, unit))
	}
	if why := m.reason(t, unit); !strings.Contains(why, "the system bus") {
		t.Errorf("who asked for it is not said:\n%s", why)
	}
	m.run(t, "systemctl", "stop", unit, socket)
	m.run(t, "systemctl", "mask", "--runtime", unit)
	var failed dbus.Error
	if err := call(); !errors.As(err, &failed) || !strings.HasPrefix(failed.Name, "org.freedesktop.DBus.Error.Spawn.") {
		t.Errorf("a call of what is masked: %v", err)
	}
	m.run(t, "systemctl", "unmask", "--runtime", unit)
	m.down(t, before)
}
