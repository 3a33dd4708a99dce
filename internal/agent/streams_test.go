package agent

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// unanswered is a stream whose client does not know that it has it, until open
// is closed.
type unanswered struct{ asked, open chan struct{} }

func (s unanswered) Write(p []byte) (int, error) {
	close(s.asked)
	<-s.open
	return len(p), nil
}
func (unanswered) Read([]byte) (int, error) { return 0, nil }
func (unanswered) Close() error             { return nil }

// Why a port cannot be reached is said once the client has its stream.
func TestForwardingFailsInOrder(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// Bound, so that nobody else listens there.
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	stream := unanswered{make(chan struct{}), make(chan struct{})}
	failed := make(chan error, 1)
	go func() {
		failed <- forwarder{ip: "127.0.0.1"}.PortForward(t.Context(), "", "", int32(at.(*unix.SockaddrInet4).Port), stream)
	}()
	select {
	case err := <-failed:
		t.Fatalf("said before the client has its stream: %v", err)
	case <-stream.asked:
	case <-time.After(time.Minute):
		t.Fatal("nothing happens")
	}
	close(stream.open)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "nothing on the node takes connections to port") {
		t.Errorf("the reason is %v", err)
	}
}
