package hostd

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/service"
)

// storeDaemon leaves a file with legiond, and tells what it finds there.
func storeDaemon() {
	said := fmt.Sprintf("%s %v", os.Getenv("LISTEN_FDNAMES"), os.Getenv("LISTEN_PID") == fmt.Sprint(os.Getpid()))
	content := make([]byte, 100)
	if n, err := unix.Pread(3, content, 0); os.Getenv("LISTEN_FDS") == "1" && err == nil {
		said += " " + string(content[:n])
	}
	fd, err := unix.MemfdCreate("kept", 0)
	if err == nil {
		_, err = unix.Write(fd, fmt.Appendf(nil, "left by %d", os.Getpid()))
	}
	socket := -1
	if err == nil {
		socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err == nil {
		to := &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}
		err = unix.Sendmsg(socket, []byte("FDSTOREREMOVE=1\nFDNAME=state\nFDSTORE=1"), unix.UnixRights(fd), to, 0)
	}
	if err == nil {
		_, err = notify.Send("READY=1\nSTATUS=" + said)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for { // select {} would be a deadlock to the runtime
		time.Sleep(time.Hour)
	}
}

// TestFileDescriptorStore: what a service has left comes back to its next run,
// until it is stopped.
func TestFileDescriptorStore(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, map[string]string{"s.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=notify\nFileDescriptorStoreMax=1\nEnvironment=LEGION_TEST_DAEMON=store\nRestart=always\nRestartSec=0\nExecStart=" + exe + "\n"})
	if err := d.do("s.service", "start"); err != nil {
		b, _ := os.ReadFile(d.dir + "/log/s.service/s.service/000001.log")
		t.Fatal(err, string(b))
	}
	for i := range 3 {
		before := d.until("s.service", func(s service.Status) bool { return s.State == service.Running && s.Restarts == i && s.Text != "" })
		if i == 0 && before.Text != " false" {
			t.Errorf("the first run finds %q", before.Text)
		}
		kill(t, before.Main.PID)
		after := d.until("s.service", func(s service.Status) bool { return s.State == service.Running && s.Restarts == i+1 && s.Text != "" })
		if want := fmt.Sprintf("state true left by %d", before.Main.PID); after.Text != want {
			t.Errorf("the next run finds %q, want %q", after.Text, want)
		}
	}
	d.must("s.service", "stop")
	d.must("s.service", "start")
	if s := d.running("s.service"); s.Text != " false" {
		t.Errorf("after a stop it finds %q", s.Text)
	}
}

// TestMessageOfOneThatIsGone: a message is placed although its sender, a child
// of the service, has ended.
func TestMessageOfOneThatIsGone(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, map[string]string{"s.service": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=notify\nNotifyAccess=all\nTimeoutStartSec=5\nExecStart=/bin/sh -c 'LEGION_TEST_DAEMON=once " + exe + "; exec sleep 1000'\n"})
	if g, err := d.client.Group(d.ctx, "s.service"); err != nil || len(g.Status.Services) != 1 {
		t.Fatal(err)
	}
	for range 10 {
		d.must("s.service", "start")
		if s := d.running("s.service"); !strings.Contains(s.Text, "one that is gone") {
			t.Errorf("its status is %q", s.Text)
		}
		d.must("s.service", "stop")
	}
}
