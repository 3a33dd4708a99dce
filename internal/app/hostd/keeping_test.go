package hostd

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/keeper"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/service"
)

// lateDaemon is a Type=notify service that says it is ready when it is told to,
// by a FIFO, and what it has said by another.
func lateDaemon() {
	dir := os.Getenv("LEGION_TEST_FIFOS")
	_, err := os.ReadFile(filepath.Join(dir, "go"))
	if err == nil {
		_, err = notify.Send("READY=1\nSTATUS=while you were away")
	}
	text := "said"
	if err != nil {
		text = err.Error()
	}
	_ = os.WriteFile(filepath.Join(dir, "said"), []byte(text), 0)
	for {
		time.Sleep(time.Hour)
	}
}

// keepers lists the processes that keep files for the legiond of a directory.
func keepers(t *testing.T, dir string) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var pid int
		data, _ := os.ReadFile(f)
		if strings.HasPrefix(string(data), keeper.Argv0+"\x00"+dir) {
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// TestSaidWhileAway: what a service says while legiond is dead is heard by the
// next one. Nothing ends the start of this one but READY=1.
func TestSaidWhileAway(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fifos := t.TempDir()
	for _, name := range []string{"go", "said"} {
		if err := unix.Mkfifo(filepath.Join(fifos, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := newDaemon(t, map[string]string{"late.service": "[Service]\nType=notify\nTimeoutStartSec=infinity\nEnvironment=LEGION_TEST_DAEMON=late LEGION_TEST_FIFOS=" + fifos + "\nExecStart=" + exe + "\n[Install]\nWantedBy=multi-user.target\n"})
	starting := d.until("late.service", func(s service.Status) bool { return s.State == service.Start && s.Main != nil && s.Main.PID != 0 })
	d.crash()
	if err := os.WriteFile(filepath.Join(fifos, "go"), nil, 0); err != nil {
		t.Fatal(err)
	}
	if said, err := os.ReadFile(filepath.Join(fifos, "said")); string(said) != "said" {
		t.Fatalf("it could not speak: %q, %v", said, err)
	}
	d.start()
	if s := d.running("late.service"); s.Text != "while you were away" || s.Main.PID != starting.Main.PID || s.Restarts != 0 {
		t.Errorf("it is %+v", s)
	}
	if pids := keepers(t, d.dir); len(pids) != 1 {
		t.Errorf("files are kept by %v", pids)
	}
	d.stop()
	if pids := keepers(t, d.dir); len(pids) != 0 {
		t.Errorf("after a stop in good order files are kept by %v", pids)
	}
}

// TestKeptOverCrash: what a service has left, and who waits at a socket, are
// there after legiond was killed; also where its keeper was killed before.
func TestKeptOverCrash(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(t.TempDir(), "s")
	d := newDaemon(t, map[string]string{
		"store.service":  "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=notify\nFileDescriptorStoreMax=1\nEnvironment=LEGION_TEST_DAEMON=store\nRestart=always\nRestartSec=0\nExecStart=" + exe + "\n[Install]\nWantedBy=multi-user.target\n",
		"greet.socket":   "[Socket]\nListenStream=" + address + "\nAccept=yes\n[Install]\nWantedBy=sockets.target\n",
		"new.socket":     "[Socket]\nListenStream=" + address + "2\nAccept=yes\n",
		"new@.service":   "[Service]\nExecStart=/bin/true\n",
		"greet@.service": "[Service]\nExecStart=/bin/echo hello\nStandardInput=socket\n",
	})
	first := d.until("store.service", func(s service.Status) bool { return s.State == service.Running && s.Text != "" })
	for i, killKeeper := range []bool{false, true, false} {
		if killKeeper {
			for _, pid := range keepers(t, d.dir) {
				waitGone(t, pid, func() { kill(t, pid) })
			}
			// The next word to it begins another, with all of it.
			d.must("new.socket", "start")
		}
		d.crash()
		c, err := net.Dial("unix", address)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		d.start()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		hello := make([]byte, 6)
		if _, err := c.Read(hello); err != nil || string(hello) != "hello\n" {
			t.Errorf("round %d: who waited heard %q, %v", i, hello, err)
		}
		_ = c.Close()
		before := d.running("store.service")
		if before.Main.PID != first.Main.PID && i == 0 {
			t.Errorf("it was %+v and is %+v", first.Main, before.Main)
		}
		if err := syscall.Kill(before.Main.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		after := d.until("store.service", func(s service.Status) bool { return s.State == service.Running && s.Restarts == i+1 && s.Text != "" })
		if want := fmt.Sprintf("state true left by %d", before.Main.PID); after.Text != want {
			t.Errorf("round %d: the next run finds %q, want %q", i, after.Text, want)
		}
	}
	// A socket that is down is nobody's: not the keeper's either.
	d.must("greet.socket", "stop")
	if c, err := net.Dial("unix", address); err == nil {
		_ = c.Close()
		t.Error("the socket of a unit that was stopped is open")
	}
	d.must("greet.socket", "start")
}
