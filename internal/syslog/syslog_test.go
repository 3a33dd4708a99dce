package syslog

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"<30>Nov 26 02:30:00 cron[12]: a job\n": "<6>cron[12]: a job",
		"<11>Nov  6 02:30:00 a: b\x00":          "<3>a: b",
		"<13>tag: no time":                      "<5>tag: no time",
		"plain":                                 "<5>plain",
		"<999>plain":                            "<5><999>plain",
		"<x>plain":                              "<5><x>plain",
		"<1":                                    "<5><1",
		"\n":                                    "",
		"<30>":                                  "",
	} {
		if got := text([]byte(in)); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("<30>Nov 26 02:30:00 cron[12]: a job\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s := text(data); s != "" && (len(s) < 4 || s[0] != '<' || s[2] != '>') {
			t.Errorf("%q gives %q", data, s)
		}
	})
}

func paths(t *testing.T) Paths {
	t.Helper()
	dir, err := os.MkdirTemp("", "log-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Paths{Log: filepath.Join(dir, "log"), Own: filepath.Join(dir, "journal", "dev-log"), Daemon: filepath.Join(dir, "syslog")}
}

func say(t *testing.T, p Paths, message string) {
	t.Helper()
	c, err := net.Dial("unixgram", p.Log)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
}

func heard(t *testing.T, s *Socket) Line {
	t.Helper()
	select {
	case l := <-s.Lines():
		return l
	case <-time.After(time.Minute):
		t.Fatal("no line came")
		return Line{}
	}
}

// TestServe: lines come with their sender and are passed on in its name; the
// next legiond goes on with the socket, or binds one of its own.
func TestServe(t *testing.T) {
	p := paths(t)
	daemon, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: p.Daemon, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	raw, err := daemon.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err != nil {
		t.Fatal(err)
	}
	s, err := Open(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	say(t, p, "<14>a: one")
	if l := heard(t, s); l.Text != "<6>a: one" || l.PID != os.Getpid() {
		t.Errorf("%+v", l)
	}
	buf, oob := make([]byte, 100), make([]byte, 100)
	if err := daemon.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n, oobn, _, _, err := daemon.ReadMsgUnix(buf, oob)
	if err != nil || string(buf[:n]) != "<14>a: one" {
		t.Fatalf("passed on: %q, %v", buf[:n], err)
	}
	controls, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(controls) != 1 {
		t.Fatalf("%v %v", controls, err)
	}
	if cred, err := unix.ParseUnixCredentials(&controls[0]); err != nil || int(cred.Pid) != os.Getpid() || cred.Gid != uint32(os.Getgid()) {
		t.Errorf("passed on by %+v, %v", cred, err)
	}

	if _, err := Open(p, nil); !errors.Is(err, ErrServed) {
		t.Errorf("a second one: %v", err)
	}
	fd, err := s.FD()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.socket.Close() // and so nothing else of it, as by its end
	next, err := Open(p, os.NewFile(uintptr(fd), "log"))
	if err != nil {
		t.Fatal(err)
	}
	say(t, p, "two")
	if l := heard(t, next); l.Text != "<5>two" {
		t.Errorf("%+v", l)
	}
	_ = next.socket.Close()
	third, err := Open(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	say(t, p, "three")
	if l := heard(t, third); l.Text != "<5>three" {
		t.Errorf("%+v", l)
	}
	third.Close()
	if _, err := os.Lstat(p.Log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is left: %v", err)
	}
}
