package notify

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func next(t *testing.T, s *Socket) Message {
	t.Helper()
	select {
	case m := <-s.Messages():
		return m
	case <-time.After(time.Minute):
		t.Fatal("no message")
		return Message{}
	}
}

func TestMessages(t *testing.T) {
	short := t.TempDir()
	long := filepath.Join(short, strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{short, long, long} { // a second time over what is left
		s, err := Listen(filepath.Join(dir, "notify"))
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", s.Address())
		if sent, err := Send("READY=1\nSTATUS=a=b\nnonsense\nMAINPID=12"); !sent || err != nil {
			t.Fatal(sent, err)
		}
		m := next(t, s)
		if m.PID != os.Getpid() || int(m.UID) != os.Getuid() || m.Vars["READY"] != "1" || m.Vars["STATUS"] != "a=b" || m.Vars["MAINPID"] != "12" || len(m.Vars) != 3 {
			t.Errorf("%+v", m)
		}
		if dir == long {
			t.Cleanup(func() { _ = os.Remove(filepath.Dir(s.Address())) })
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if _, open := <-s.Messages(); open {
			t.Error("not closed")
		}
	}
}

// sd_notify_barrier(3) hands over a descriptor and waits until all copies of it
// are closed.
func TestBarrier(t *testing.T) {
	s, err := Listen(filepath.Join(t.TempDir(), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: s.Address()}, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	m := next(t, s)
	if m.Vars["BARRIER"] != "1" {
		t.Errorf("%+v", m)
	}
	m.Close()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the barrier was not lifted: %v", err)
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if sent, err := Send("READY=1"); sent || err != nil {
		t.Error(sent, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("READY=1\nX=\n=\n"), []byte{})
	f.Fuzz(func(_ *testing.T, data, oob []byte) {
		if len(oob) >= unix.CmsgLen(0) {
			oob = oob[:0] // control messages come from the kernel
		}
		parse(oob)
		assignments(data)
	})
}
