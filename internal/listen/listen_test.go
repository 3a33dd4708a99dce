package listen

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

func at(kind, address string) service.Listen { return service.Listen{Kind: kind, Address: address} }

func ready(t *testing.T, w *Watch, want string) {
	t.Helper()
	select {
	case name := <-w.Ready():
		if name != want {
			t.Fatalf("%s is ready, want %s", name, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("%s is never ready", want)
	}
}

func TestSocketsAreOpenedAndWatched(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "deep", "stream")
	s := &service.Socket{
		Listen: []service.Listen{at(service.ListenStream, path), at(service.ListenFIFO, filepath.Join(dir, "fifo")), at(service.ListenDatagram, "@legion-test-"+filepath.Base(dir))},
		Mode:   0o620, Symlinks: []string{filepath.Join(dir, "link")}, RemoveOnStop: true, Accept: true,
	}
	// What a process has left there is in nobody's way.
	left, err := Open(&service.Socket{Listen: s.Listen[:1]})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(left[0])
	fds, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode().Perm() != 0o620 {
		t.Errorf("the socket is %v, %v", fi, err)
	}
	w, err := NewWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Arm("x.socket", fds); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", filepath.Join(dir, "link"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ready(t, w, "x.socket")
	conn, ends, err := Accept(fds[0])
	if err != nil || ends == "" {
		t.Fatalf("%d, %q, %v", conn, ends, err)
	}
	unix.Close(conn)
	if _, _, err := Accept(fds[0]); !errors.Is(err, ErrNone) {
		t.Errorf("a second connection: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fifo"), []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	ready(t, w, "x.socket")
	w.Disarm(fds)
	if err := Close(s, fds); err != nil {
		t.Error(err)
	}
	for _, name := range []string{path, filepath.Join(dir, "fifo"), filepath.Join(dir, "link")} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestOneThatCannotBeOpenedClosesTheOthers(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir("/proc/self/fd")
	_, err := Open(&service.Socket{Listen: []service.Listen{at(service.ListenStream, filepath.Join(dir, "a")), at(service.ListenStream, file)}})
	if err == nil {
		t.Fatal("a socket took the place of a file")
	}
	after, _ := os.ReadDir("/proc/self/fd")
	if len(after) > len(before) {
		t.Errorf("%d descriptors before, %d after: %v", len(before), len(after), err)
	}
}

// TestTake: a process that was given the sockets still has them when the one
// that opened them is gone.
func TestTake(t *testing.T) {
	dir := t.TempDir()
	s := &service.Socket{Listen: []service.Listen{at(service.ListenStream, filepath.Join(dir, "a")), at(service.ListenStream, "127.0.0.1:0")}}
	s.Listen = s.Listen[:1]
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := tcp.Addr().String()
	tcp.Close()
	s.Listen = append(s.Listen, at(service.ListenStream, port))
	fds, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "read line")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), "socket"))
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	taken, ok := Take(s, cmd.Process.Pid)
	if !ok || len(taken) != 2 || slices.Contains(taken, -1) {
		t.Fatalf("taken: %v, %v", taken, ok)
	}
	for i, fd := range taken {
		if !isFor(s.Listen[i], fd) {
			t.Errorf("descriptor %d is not for %s", fd, s.Listen[i].Address)
		}
		unix.Close(fd)
	}
	in.Close()
	_ = cmd.Wait() // it ends as it likes
	if _, ok := Take(s, cmd.Process.Pid); ok {
		t.Error("taken from one that is gone")
	}
}
