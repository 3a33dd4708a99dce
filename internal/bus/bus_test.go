package bus

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// startBus runs a bus of its own on the socket, and gives how to end it.
func startBus(t *testing.T, socket string) (stop func()) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("there is no dbus-daemon here")
	}
	conf := filepath.Join(t.TempDir(), "bus.conf")
	text := fmt.Sprintf(`<busconfig><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`, socket)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return runBus(t, program, "--config-file="+conf)
}

// runBus runs the program until it listens.
func runBus(t *testing.T, program string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(program, append(args, "--nofork", "--nopidfile", "--nosyslog", "--print-address=1")...)
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := said.Read(make([]byte, 1)); err != nil { // it listens once it has said where
		t.Fatal(err)
	}
	ended := false
	stop = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	return stop
}

func connect(t *testing.T, socket string) *dbus.Conn {
	t.Helper()
	conn, err := dbus.Connect("unix:path=" + socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func own(t *testing.T, conn *dbus.Conn, name string) {
	t.Helper()
	if _, err := conn.RequestName(name, 0); err != nil {
		t.Fatal(err)
	}
}

// until takes changes until one is as wanted; the same may be told twice.
func until(t *testing.T, b *Bus, want Change) {
	t.Helper()
	for deadline := time.After(time.Minute); ; {
		select {
		case c := <-b.Changes():
			if c == want {
				return
			}
		case <-deadline:
			t.Fatalf("%+v was not told", want)
		}
	}
}

func TestOwners(t *testing.T) {
	dir, err := os.MkdirTemp("", "bus-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "bus")
	b := New(socket)
	defer b.Close()
	if b.Watch("org.example.A") {
		t.Error("there is a bus before there is one")
	}
	stop := startBus(t, socket)
	early := connect(t, socket)
	own(t, early, "org.example.Early")
	for _, name := range []string{"org.example.A", "org.example.Early"} {
		if !b.Watch(name) {
			t.Fatal("there is no bus")
		}
	}
	until(t, b, Change{"org.example.Early", true})

	a := connect(t, socket)
	own(t, a, "org.example.A")
	until(t, b, Change{"org.example.A", true})
	_ = a.Close() // as by its death
	until(t, b, Change{"org.example.A", false})

	// Asked again, it tells again.
	b.Watch("org.example.Early")
	until(t, b, Change{"org.example.Early", true})
	b.Forget("org.example.A")
	b.Watch("org.example.Early")
	until(t, b, Change{"org.example.Early", true})

	// A bus that is started anew knows nothing of what was.
	stop()
	_ = os.Remove(socket)
	startBus(t, socket)
	until(t, b, Change{"org.example.Early", false})
	own(t, connect(t, socket), "org.example.Early")
	until(t, b, Change{"org.example.Early", true})

	// Nobody asks, then somebody does.
	b.Forget("org.example.Early")
	b.Watch("org.example.Early")
	until(t, b, Change{"org.example.Early", true})
}
