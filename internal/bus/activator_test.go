package bus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// startSystemBus runs a bus as a distribution's unit does, with a service that is
// a unit's.
func startSystemBus(t *testing.T, socket string) (stop func()) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("there is no dbus-daemon here")
	}
	dir := t.TempDir()
	service := "[D-BUS Service]\nName=org.example.Late\nExec=/bin/false\nUser=root\nSystemdService=late.service\n"
	if err := os.WriteFile(filepath.Join(dir, "org.example.Late.service"), []byte(service), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth><servicedir>%s</servicedir>
<servicehelper>/bin/false</servicehelper><policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`, socket, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return runBus(t, program, "--config-file="+conf, "--systemd-activation")
}

func next(t *testing.T, a *Activator) Activation {
	t.Helper()
	select {
	case x := <-a.Activations():
		return x
	case <-time.After(time.Minute):
		t.Fatal("the bus asks for nothing")
		return Activation{}
	}
}

// TestActivation: the bus asks for the unit of a service that somebody calls,
// also if the caller was there first; a service that comes is called, and of one
// that cannot the caller is told why.
func TestActivation(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	stop := startSystemBus(t, socket)
	a := NewActivator(socket, slog.New(slog.DiscardHandler))
	a.lost = firstWait
	defer a.Close()
	call := func() <-chan error {
		conn := connect(t, socket)
		done := make(chan error, 1)
		go func() {
			done <- conn.Object("org.example.Late", "/").Call("org.freedesktop.DBus.Peer.Ping", 0).Err
		}()
		return done
	}
	first := call()
	a.Serve(true)
	a.Serve(true)
	x := next(t, a)
	if x.Unit != "late.service" {
		t.Errorf("the bus asks for %s", x.Unit)
	}
	x.Fail("it is not a day for it")
	var failed dbus.Error
	if err := <-first; !errors.As(err, &failed) || failed.Name != Failed || failed.Error() != "it is not a day for it" {
		t.Errorf("the caller is told %v", err)
	}
	second := call()
	next(t, a)
	own(t, connect(t, socket), "org.example.Late")
	if err := <-second; err != nil {
		t.Errorf("the caller is told %v", err)
	}

	// The bus goes and comes without a word.
	stop()
	startSystemBus(t, socket)
	third := call()
	next(t, a).Fail("no")
	if err := <-third; err == nil {
		t.Error("a call of nobody succeeds")
	}
	a.Serve(false)
	conn := connect(t, socket)
	owned := true
	for end := time.Now().Add(time.Minute); owned && time.Now().Before(end); {
		if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, managerName).Store(&owned); err != nil {
			t.Fatal(err)
		}
	}
	if owned {
		t.Error("the name is held of a bus that is not served")
	}
}

// TestBusThatHasEnded: the socket's unit listens on when the bus has ended, and
// would start it for whoever connects.
func TestBusThatHasEnded(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	stop := startSystemBus(t, socket)
	a := NewActivator(socket, slog.New(slog.DiscardHandler))
	a.lost = time.Hour
	defer a.Close()
	a.Serve(true)
	conn, owned := connect(t, socket), false
	for end := time.Now().Add(time.Minute); !owned; {
		if err := conn.BusObject().Call("org.freedesktop.DBus.NameHasOwner", 0, managerName).Store(&owned); err != nil || time.Now().After(end) {
			t.Fatal("the name is not taken: ", err)
		}
	}
	stop()
	_ = os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetDeadline(time.Now().Add(10 * firstWait)); err != nil {
		t.Fatal(err)
	}
	if c, err := l.Accept(); err == nil {
		_ = c.Close()
		t.Error("it has connected again before it was told that the bus has ended")
	}
	a.Serve(false)
}
