package console

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// ociRuntime sends the near end of a terminal to the socket, as runc does, in
// steps: each is done when the next is called for.
type ociRuntime struct {
	t     *testing.T
	at    string
	conn  *net.UnixConn
	slave *os.File
}

func (r *ociRuntime) connect() {
	r.t.Helper()
	conn, err := net.Dial("unix", r.at)
	if err != nil {
		r.t.Fatal(err)
	}
	r.conn = conn.(*net.UnixConn)
}

func (r *ociRuntime) send() {
	r.t.Helper()
	master, slave, err := openTerminal()
	if err != nil {
		r.t.Fatal(err)
	}
	r.slave = os.NewFile(uintptr(slave), "slave")
	if _, _, err := r.conn.WriteMsgUnix([]byte("/dev/pts/0"), unix.UnixRights(master), nil); err != nil {
		r.t.Fatal(err)
	}
	unix.Close(master)
	r.conn.Close()
}

// TestFromRuntime: the terminal that a runtime makes is taken over, wherever on
// its way legiond is killed.
func TestFromRuntime(t *testing.T) {
	for _, killed := range []string{"never", Listener, Connection, Terminal} {
		t.Run(killed, func(t *testing.T) {
			k := newKeeper()
			defer k.end(t)
			dir := filepath.Join(t.TempDir(), strings.Repeat("a long name/", 12))
			c, log := New(k), logFile(t)
			if fd, err := c.Open("k", &service.Console{Stdin: true, Terminal: true}, filepath.Join(dir, service.ConsoleSocket), log); fd != 0 || err != nil {
				t.Fatal(fd, err)
			}
			again := func(at string) {
				t.Helper()
				if got := <-k.puts; got != at {
					t.Fatalf("a %s is kept, want a %s", got, at)
				}
				if killed != at {
					return
				}
				forget(c)
				c = New(k)
				if err := c.Resume("k", k.left("k"), log); err != nil {
					t.Fatal(err)
				}
			}
			t.Chdir(dir) // as the runtime is started
			r := &ociRuntime{t: t, at: service.ConsoleSocket}
			again(Listener)
			r.connect()
			again(Connection)
			r.send()
			again(Terminal)
			one := attach(t, c, "k")
			one.send(hostapi.AttachInput{Data: []byte("in\n")})
			if got := read(t, r.slave, 3); got != "in\n" {
				t.Errorf("%q came", got)
			}
			if _, err := r.slave.WriteString("out\n"); err != nil {
				t.Fatal(err)
			}
			r.slave.Close()
			one.until("out\r\n")
			c.End("k")
			one.until("")
		})
	}
}

// TestNoRuntime: a run that ends before there is a terminal ends all the same,
// and who waits for it is let go.
func TestNoRuntime(t *testing.T) {
	k := newKeeper()
	defer k.end(t)
	c := New(k)
	socket := filepath.Join(t.TempDir(), service.ConsoleSocket)
	for _, connect := range []bool{false, true} {
		if _, err := c.Open("k", &service.Console{Stdin: true, Terminal: true}, socket, logFile(t)); err != nil {
			t.Fatal(err)
		}
		<-k.puts
		r := &ociRuntime{t: t, at: socket}
		if connect {
			r.connect()
			<-k.puts
			defer r.conn.Close()
		}
		one := attach(t, c, "k")
		one.send(hostapi.AttachInput{Data: []byte("in\n")})
		if !connect {
			continue // the next run ends it
		}
		c.End("k")
		one.conn.Close()
		<-one.done
	}
}
