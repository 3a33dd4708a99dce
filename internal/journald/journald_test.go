package journald

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sized is a field in the form for any value.
func sized(name, value string) string {
	return name + "\n" + string(binary.LittleEndian.AppendUint64(nil, uint64(len(value)))) + value + "\n"
}

func TestEntries(t *testing.T) {
	for in, want := range map[string][]string{
		"MESSAGE=hello\nPRIORITY=3\nSYSLOG_IDENTIFIER=tag\n": {"<3>tag[7]: hello"},
		"MESSAGE=no end":                                    {"<6>no end"},
		"PRIORITY=9\nMESSAGE=x\n":                           {"<6>x"},
		"PRIORITY=12\nMESSAGE=x\n":                          {"<6>x"},
		sized("MESSAGE", "two\n\nlines\n") + "PRIORITY=1\n": {"<1>two", "<1>lines"},
		"PRIORITY=4\nMESSAGE=one\n\nMESSAGE=two\n":          {"<4>one", "<6>two"},
		"# remark\n.word\nMESSAGE=a=b\n":                    {"<6>a=b"},
		"CODE_LINE=1\n":                                     nil,
		"":                                                  nil,
		"MESSAGE=kept\nOTHER\nshort":                        {"<6>kept"},
		"MESSAGE=kept\nOTHER\n\xff\xff\xff\xff\xff\xff\xff\xffpast it": {"<6>kept"},
		"MESSAGE=kept\nOTHER\n\x01\x00\x00\x00\x00\x00\x00\x00xx\n":    {"<6>kept"},
	} {
		var got []string
		for _, e := range entries([]byte(in)) {
			got = append(got, e.lines(7)...)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func FuzzEntries(f *testing.F) {
	f.Add([]byte("MESSAGE=hello\nPRIORITY=3\nSYSLOG_IDENTIFIER=tag\n"))
	f.Add([]byte(sized("MESSAGE", "two\nlines") + "\n" + sized("MESSAGE", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range entries(data) {
			for _, s := range e.lines(1) {
				if len(s) < 4 || s[0] != '<' || s[1] < '0' || s[1] > '7' || s[2] != '>' || strings.Contains(s, "\n") {
					t.Errorf("%q gives %q", data, s)
				}
			}
		}
	})
}

func open(t *testing.T, p Paths, before *Handover) *Sockets {
	t.Helper()
	s, err := Open(p, before)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func places(t *testing.T) Paths {
	t.Helper()
	dir, err := os.MkdirTemp("", "jd-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Paths{Native: filepath.Join(dir, "journal", "socket"), Stream: filepath.Join(dir, "journal", "stdout")}
}

func heard(t *testing.T, s *Sockets, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case l := <-s.Lines():
			if l.Text != w || l.PID != os.Getpid() {
				t.Errorf("heard %+v, want %q", l, w)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q was not heard", w)
		}
	}
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, network, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix(network, nil, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestNative: datagrams, and files in their place, come with their sender.
func TestNative(t *testing.T) {
	p := places(t)
	s := open(t, p, nil)
	defer s.Close()
	if _, err := Open(p, nil); !errors.Is(err, ErrServed) {
		t.Errorf("a second one: %v", err)
	}
	me := os.Getpid()
	write(t, dial(t, "unixgram", p.Native), "MESSAGE=hello\nPRIORITY=4\nSYSLOG_IDENTIFIER=tag\n")
	heard(t, s, fmt.Sprintf("<4>tag[%d]: hello", me))
	long := strings.Repeat("x", 180<<10)
	big := dial(t, "unixgram", p.Native)
	write(t, big, "MESSAGE="+long+"\n")
	heard(t, s, "<6>"+long)
	file, err := unix.MemfdCreate("entry", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	if _, err := unix.Write(file, []byte(sized("MESSAGE", long))); err != nil {
		t.Fatal(err)
	}
	from, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(from)
	pipe := make([]int, 2)
	if err := unix.Pipe(pipe); err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{pipe[0], file} { // a pipe has no content that can be had without waiting
		if err := unix.Sendmsg(from, nil, unix.UnixRights(fd), &unix.SockaddrUnix{Name: p.Native}, 0); err != nil {
			t.Fatal(err)
		}
	}
	heard(t, s, "<6>"+long)
	unix.Close(pipe[0])
	unix.Close(pipe[1])
}

// TestStream: lines come with the header's words, and the next legiond goes on
// in the middle of one.
func TestStream(t *testing.T) {
	p := places(t)
	s := open(t, p, nil)
	me := os.Getpid()
	cat, plain := dial(t, "unix", p.Stream), dial(t, "unix", p.Stream)
	write(t, cat, "cat\nunit.service\n5\n1\n0\n0\n0\n")
	write(t, cat, "usual\n<3>urgent\n\n")
	heard(t, s, fmt.Sprintf("<5>cat[%d]: usual", me), fmt.Sprintf("<3>cat[%d]: urgent", me))
	write(t, cat, "half a ")
	write(t, plain, "\n\n")
	write(t, cat, "word\nanother ") // the order of the two is not told, but by this
	heard(t, s, fmt.Sprintf("<5>cat[%d]: half a word", me))

	s.Suspend()
	for l := range s.Lines() {
		t.Errorf("heard %+v", l)
	}
	h, err := s.Handover()
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Streams) != 2 || len(h.FDs()) != 4 {
		t.Errorf("left are %+v", h)
	}
	next := open(t, p, &h)
	write(t, cat, "word\n")
	heard(t, next, fmt.Sprintf("<5>cat[%d]: another word", me))
	write(t, plain, "\n0\n\n\n\n<3>as it is\nthe end")
	_ = plain.CloseWrite()
	heard(t, next, "<6><3>as it is", "<6>the end")
	write(t, cat, strings.Repeat("y", maxLine+1)+"\n")
	heard(t, next, fmt.Sprintf("<5>cat[%d]: %s", me, strings.Repeat("y", maxLine)), fmt.Sprintf("<5>cat[%d]: y", me))
	write(t, dial(t, "unixgram", p.Native), "MESSAGE=to the next\n")
	heard(t, next, "<6>to the next")
	next.Close()
	for range next.Lines() {
	}
	if _, err := os.Lstat(p.Stream); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
