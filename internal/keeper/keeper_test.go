package keeper

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/notify"
)

// place is where a keeper is, with the socket of services and how it is started.
type place struct {
	t    *testing.T
	path string
	pids []int
}

func newPlace(t *testing.T) *place {
	t.Helper()
	dir, err := os.MkdirTemp("", "keep-") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &place{t: t, path: filepath.Join(dir, "keeper")}
}

func (p *place) start(path string, listener, conn int) error {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{Argv0, path}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2, uintptr(listener), uintptr(conn)},
	})
	if err == nil {
		p.pids = append(p.pids, pid)
	}
	return err
}

func (p *place) find() (*Keeper, Left) {
	p.t.Helper()
	k, left, err := Find(p.path, p.start)
	if err != nil {
		p.t.Fatal(err)
	}
	return k, left
}

// ended waits for the end of the newest process.
func (p *place) ended() syscall.WaitStatus {
	p.t.Helper()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(p.pids[len(p.pids)-1], &status, 0, nil); err != nil {
		p.t.Fatal(err)
	}
	return status
}

// dies is what becomes of a legiond's end when it is killed.
func (k *Keeper) dies() { unix.Close(k.conn) }

func file(t *testing.T, text string) int {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return fd
}

// texts are the names and contents of files.
func texts(t *testing.T, files []File) string {
	t.Helper()
	var out []string
	for _, f := range files {
		buf := make([]byte, 100)
		n, err := unix.Pread(f.FD, buf, 0)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f.Name+"="+string(buf[:n]))
	}
	return strings.Join(out, " ")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestFiles: what one legiond has put is there for the next, and for the one
// after; also where the keeper itself was killed in between.
func TestFiles(t *testing.T) {
	p := newPlace(t)
	k, left := p.find()
	if len(left.Files)+len(left.Notes) != 0 || len(p.pids) != 0 {
		t.Fatalf("from the beginning there is %+v", left)
	}
	for i, name := range []string{"one", "two", "one"} {
		fd := file(t, fmt.Sprint(i))
		must(t, k.Put("a", File{name, fd}))
		unix.Close(fd) // the keeper has copies
	}
	must(t, k.Put("b", File{"other", file(t, "b")}))
	k.dies()
	k, left = p.find()
	if a, b := texts(t, left.Files["a"]), texts(t, left.Files["b"]); a != "one=0 two=1 one=2" || b != "other=b" {
		t.Errorf("the next one finds %q and %q", a, b)
	}
	must(t, syscall.Kill(p.pids[0], syscall.SIGKILL))
	p.ended()
	must(t, k.Drop("a", "one"))
	k.dies()
	k, left = p.find()
	if a, b := texts(t, left.Files["a"]), texts(t, left.Files["b"]); a != "two=1" || b != "other=b" || len(p.pids) != 2 {
		t.Errorf("after the keeper was killed there are %q and %q, from %d", a, b, len(p.pids))
	}
	must(t, k.Drop("b", ""))
	must(t, k.Drop("c", ""))
	if k.Holds("b") || !k.Holds("a") {
		t.Error("what is held is not known")
	}
	k.dies()
	k, left = p.find()
	if _, there := left.Files["b"]; there || len(left.Files) != 1 {
		t.Errorf("what was dropped is there: %+v", left.Files)
	}
	k.End()
	if status := p.ended(); status.ExitStatus() != 0 {
		t.Errorf("it ended with %v", status)
	}
	if _, left = p.find(); len(left.Files) != 0 {
		t.Errorf("after its end there is %+v", left)
	}
}

// heardBy makes the socket of services and has the keeper hold it, too.
func heardBy(t *testing.T, p *place, k *Keeper) *notify.Socket {
	t.Helper()
	s, err := notify.Listen(filepath.Join(filepath.Dir(p.path), "notify"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := s.FD()
	must(t, err)
	must(t, k.Put(Notify, File{FD: fd}))
	unix.Close(fd)
	return s
}

// TestNotes: what services say while no legiond is there is told to the next,
// and to the one after if that was killed before it had dealt with it. Nobody
// waits at a full socket, and nobody at a barrier.
func TestNotes(t *testing.T) {
	p := newPlace(t)
	k, _ := p.find()
	s := heardBy(t, p, k)
	address := s.Address()
	must(t, s.Close()) // legiond is killed
	k.dies()
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(c)
	must(t, unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 60}))
	say := func(text string, fds ...int) {
		t.Helper()
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		err := unix.EINTR
		for err == unix.EINTR { // a socket with a time limit is not waited for again
			err, _ = unix.Sendmsg(c, []byte(text), rights, &unix.SockaddrUnix{Name: address}, 0).(unix.Errno)
		}
		if err != 0 {
			t.Fatal(err)
		}
	}
	for range 1000 { // many more than a socket takes
		say("WATCHDOG=1")
	}
	say("READY=1\nSTATUS=up")
	for i := range 2 * maxNotes {
		say(fmt.Sprintf("STATUS=%d", i))
	}
	stored := file(t, "stored")
	say("FDSTORE=1\nFDNAME=state", stored)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	say("BARRIER=1", int(w.Fd()))
	w.Close()
	must(t, r.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := r.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Fatalf("the barrier: %v", err)
	}
	for range 2 {
		var left Left
		k, left = p.find()
		if len(left.Notes) != maxNotes {
			t.Fatalf("%d messages", len(left.Notes))
		}
		first, last := left.Notes[0], left.Notes[maxNotes-2]
		if first.Vars["READY"] != "1" || first.PID != os.Getpid() || int(first.UID) != os.Getuid() {
			t.Errorf("the first message is %+v", first)
		}
		if last.Vars["FDNAME"] != "state" || len(last.FDs) != 1 || texts(t, []File{{"", last.FDs[0]}}) != "=stored" {
			t.Errorf("the last but one message is %+v", last)
		}
		if end := left.Notes[maxNotes-1]; end.Vars["BARRIER"] != "1" || len(end.FDs) != 0 {
			t.Errorf("the last message is %+v", end)
		}
		last.Close()
		k.dies()
	}
	k, _ = p.find()
	k.Heard()
	k.dies()
	k, left := p.find()
	if len(left.Notes) != 0 {
		t.Errorf("what was dealt with is told again: %+v", left.Notes[0])
	}
	// The next one goes on with the socket.
	s, err = notify.Resume("", os.NewFile(uintptr(left.Files[Notify][0].FD), "notify"))
	must(t, err)
	defer s.Close()
	say("STATUS=to the next")
	select {
	case m := <-s.Messages():
		if m.Vars["STATUS"] != "to the next" {
			t.Errorf("it hears %+v", m)
		}
	case <-time.After(time.Minute):
		t.Error("it hears nothing")
	}
	k.End()
	p.ended()
}
