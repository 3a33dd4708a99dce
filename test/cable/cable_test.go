package cable

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"legion.dev/legion/internal/netns"
)

// in runs f on a thread in the namespace at path: sockets that it opens stay there.
func in[T any](t *testing.T, path string, f func() (T, error)) T {
	t.Helper()
	var value T
	if err := netns.Within(path, func() (err error) {
		value, err = f()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return value
}

// wire gives a connection from a node to an echo in the hub, through a cable.
func wire(t *testing.T) (*Cable, net.Conn) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("no taps: ", err)
	}
	id := fmt.Sprintf("%08x", uint32(os.Getpid())<<8|0xca)
	subnet, err := netns.Choose(id)
	if err != nil {
		t.Fatal(err)
	}
	n := netns.Network{ID: id, Subnet: subnet}
	t.Cleanup(func() {
		if err := n.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err := n.EnsureHub(); err != nil {
		t.Skipf("this machine gives no network namespaces: %v", err)
	}
	if err := n.EnsureNode("n1", 1); err != nil {
		t.Fatal(err)
	}
	c, err := Insert(n.HubPath(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	l := in(t, n.HubPath(), func() (net.Listener, error) {
		return net.Listen("tcp", netip.AddrPortFrom(n.HubAddr(), 0).String())
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	conn := in(t, n.NodePath("n1"), func() (net.Conn, error) {
		return (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", l.Addr().String())
	})
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c, conn
}

// echo sends size bytes, reads them back and says how long it took.
func echo(t *testing.T, conn net.Conn, size int) time.Duration {
	t.Helper()
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * 7)
	}
	start := time.Now()
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Fatal("other bytes came back")
	}
	return time.Since(start)
}

func TestWholeCable(t *testing.T) {
	_, conn := wire(t)
	echo(t, conn, 1)
	// Large enough for frames that the kernel leaves unsegmented.
	echo(t, conn, 4<<20)
}

func TestDelay(t *testing.T) {
	c, conn := wire(t)
	c.Set(State{Delay: 50 * time.Millisecond})
	if took := echo(t, conn, 1); took < 100*time.Millisecond {
		t.Errorf("there and back took %s, want at least twice 50 ms", took)
	}
}

func TestLoss(t *testing.T) {
	c, conn := wire(t)
	c.Set(State{Loss: 0.1})
	echo(t, conn, 200<<10)
}

func TestCutAndMended(t *testing.T) {
	c, conn := wire(t)
	c.Set(State{Cut: true})
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := conn.Read(b[:]); !os.IsTimeout(err) {
		t.Fatalf("read %q, %v through a cut cable, want a timeout", b, err)
	}
	c.Set(State{})
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, b[:]); err != nil || b[0] != 'x' {
		t.Fatalf("read %q, %v after the cable was mended, want x", b, err)
	}
}
