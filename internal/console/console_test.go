package console

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// fakeKeeper holds copies, as a process beside legiond does.
type fakeKeeper struct {
	mu    sync.Mutex
	files map[string][]File
	puts  chan string
}

func newKeeper() *fakeKeeper {
	return &fakeKeeper{files: map[string][]File{}, puts: make(chan string, 16)}
}

func (k *fakeKeeper) Put(key string, f File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fd, err := unix.FcntlInt(uintptr(f.FD), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		panic(err)
	}
	k.files[key] = append(k.files[key], File{f.Name, fd})
	k.puts <- f.Name
}

func (k *fakeKeeper) Drop(key, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var rest []File
	for _, f := range k.files[key] {
		if name == "" || f.Name == name {
			unix.Close(f.FD)
		} else {
			rest = append(rest, f)
		}
	}
	k.files[key] = rest
}

// left are copies of what it holds, for the next legiond.
func (k *fakeKeeper) left(key string) (out []File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range k.files[key] {
		fd, err := unix.FcntlInt(uintptr(f.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			panic(err)
		}
		out = append(out, File{f.Name, fd})
	}
	return out
}

// end closes all; nothing is to be held at the end of a test.
func (k *fakeKeeper) end(t *testing.T) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, files := range k.files {
		for _, f := range files {
			t.Errorf("%s of %s is still held", f.Name, key)
			unix.Close(f.FD)
		}
	}
}

// client is the other end of an attachment.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *json.Decoder
	done chan error
	got  string
}

func attachedTo(c *Consoles, key string) int {
	c.mu.Lock()
	one := c.all[key]
	c.mu.Unlock()
	if one == nil {
		return 0
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	return len(one.attached)
}

func attach(t *testing.T, c *Consoles, key string) *client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	one := &client{t: t, conn: ours, in: json.NewDecoder(ours), done: make(chan error, 1)}
	before := attachedTo(c, key)
	go func() { one.done <- c.Attach(key, true, theirs) }()
	for attachedTo(c, key) == before && len(one.done) == 0 {
		runtime.Gosched()
	}
	t.Cleanup(func() { ours.Close() })
	return one
}

func (c *client) send(m hostapi.AttachInput) {
	c.t.Helper()
	if err := json.NewEncoder(c.conn).Encode(m); err != nil {
		c.t.Fatal(err)
	}
}

// until reads on until a text has come, or with an empty text to the end.
func (c *client) until(text string) {
	c.t.Helper()
	for text == "" || !strings.Contains(c.got, text) {
		var m hostapi.AttachOutput
		err := c.in.Decode(&m)
		switch {
		case err != nil:
			c.t.Fatalf("%v, %q came, want %q", err, c.got, text)
		case m.Ended && text == "":
			return
		case m.Ended:
			c.t.Fatalf("it ended, %q came, want %q", c.got, text)
		}
		c.got += string(m.Data)
	}
}

// file gives the process's end as a file that blocks, as a process has it.
func file(t *testing.T, fd int) *os.File {
	f := os.NewFile(uintptr(fd), "theirs")
	t.Cleanup(func() { f.Close() })
	return f
}

func logFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t *testing.T, f *os.File, n int) string {
	t.Helper()
	buf := make([]byte, n)
	if _, err := io.ReadFull(f, buf); err != nil {
		t.Fatal(err)
	}
	return string(buf)
}

// TestPipe: two write one after the other; the end is that of the run.
func TestPipe(t *testing.T) {
	k := newKeeper()
	defer k.end(t)
	c := New(k)
	fd, err := c.Open("k", &service.Console{Stdin: true}, "", "")
	if err != nil {
		t.Fatal(err)
	}
	theirs := file(t, fd)
	for _, word := range []string{"one", "two"} {
		one := attach(t, c, "k")
		one.send(hostapi.AttachInput{Data: []byte(word)})
		one.send(hostapi.AttachInput{Close: true})
		one.conn.Close()
		if err := <-one.done; err != nil {
			t.Error(err)
		}
		if got := read(t, theirs, 3); got != word {
			t.Errorf("%q came, want %q", got, word)
		}
	}
	last := attach(t, c, "k")
	last.send(hostapi.AttachInput{Data: []byte("now")})
	read(t, theirs, 3)
	c.End("k")
	last.until("")
	if n, err := theirs.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %d, %v", n, err)
	}
	if err := attach(t, c, "k").done; !errors.Is(<-err, ErrNone) {
		t.Error("after the end it can be attached to")
	}
}

// TestOnce: the pipe is closed when the client says so or leaves, also by the
// legiond after the one that made it.
func TestOnce(t *testing.T) {
	for name, end := range map[string]func(c *client){
		"close": func(c *client) { c.send(hostapi.AttachInput{Close: true}) },
		"leave": func(c *client) { c.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper()
			defer k.end(t)
			before := New(k)
			fd, err := before.Open("k", &service.Console{Stdin: true, Once: true}, "", "")
			if err != nil {
				t.Fatal(err)
			}
			theirs := file(t, fd)
			c := New(k)
			if err := c.Resume("k", k.left("k"), ""); err != nil {
				t.Fatal(err)
			}
			forget(before)
			one := attach(t, c, "k")
			one.send(hostapi.AttachInput{Data: []byte("all of it")})
			end(one)
			if got, err := io.ReadAll(theirs); err != nil || string(got) != "all of it" {
				t.Errorf("%q, %v", got, err)
			}
			one.conn.Close()
			<-one.done
			if err := <-attach(t, c, "k").done; !errors.Is(err, ErrClosed) {
				t.Errorf("a second one: %v", err)
			}
			c.End("k")
		})
	}
}

// forget closes what a legiond that is killed has open.
func forget(c *Consoles) {
	c.Suspend()
	for _, one := range c.all {
		one.mu.Lock()
		one.close()
		one.mu.Unlock()
	}
}

// TestTerminal: what a process writes is in the log and with all who are
// attached, to the last byte, and its size follows the client's.
func TestTerminal(t *testing.T) {
	k := newKeeper()
	defer k.end(t)
	c, log := New(k), logFile(t)
	fd, err := c.Open("k", &service.Console{Stdin: true, Terminal: true}, "", log)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fd), "terminal")
	one, two := attach(t, c, "k"), attach(t, c, "k")
	one.send(hostapi.AttachInput{Rows: 33, Columns: 77})
	one.send(hostapi.AttachInput{Data: []byte("in\n")})
	one.until("in\r\n") // the terminal's echo
	if got := read(t, theirs, 3); got != "in\n" {
		t.Errorf("%q came", got)
	}
	if size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ); err != nil || size.Row != 33 || size.Col != 77 {
		t.Errorf("its size is %+v, %v", size, err)
	}
	two.until("in\r\n")
	lines := strings.Repeat("a line\n", 1000)
	for _, text := range []string{lines, "last"} {
		if _, err := theirs.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	c.End("k")
	want := "in\r\n" + strings.ReplaceAll(lines, "\n", "\r\n") + "last"
	for _, one := range []*client{one, two} {
		if one.until(""); one.got != want {
			t.Errorf("%d bytes came, want %d", len(one.got), len(want))
		}
	}
	if got, err := os.ReadFile(log); err != nil || string(got) != want {
		t.Errorf("%d bytes in the log, want %d, %v", len(got), len(want), err)
	}
}

// TestStuckAtTheEnd: a client that takes nothing does not hold up the end of the
// run, and nothing is missing in the log.
func TestStuckAtTheEnd(t *testing.T) {
	k := newKeeper()
	defer k.end(t)
	c, log := New(k), logFile(t)
	fd, err := c.Open("k", &service.Console{Stdin: true, Terminal: true}, "", log)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fd), "terminal")
	ours, stuck := net.Pipe()
	defer ours.Close()
	go func() { _ = c.Attach("k", true, stuck) }()
	if err := json.NewEncoder(ours).Encode(hostapi.AttachInput{Rows: 1, Columns: 1}); err != nil {
		t.Fatal(err) // it is attached
	}
	wrote := make(chan int)
	go func() {
		n := 0
		for range 200 { // until it waits for the client
			m, err := theirs.WriteString("text\n")
			if n += m; err != nil {
				break
			}
		}
		theirs.Close()
		wrote <- n
	}()
	n := <-wrote
	c.End("k")
	if got, err := os.ReadFile(log); err != nil || len(got) != n/5*6 {
		t.Errorf("%d bytes in the log of %d written, %v", len(got), n/5*6, err)
	}
}

// TestStuck: whoever writes waits for a client, but not for one that takes
// nothing.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		s := newSession(theirs)
		go s.write()
		begun := time.Now()
		for range waiting + 2 {
			s.give([]byte("x"), nil, false)
		}
		if took := time.Since(begun); took != patience {
			t.Errorf("it waited for %s, want %s", took, patience)
		}
		<-s.gone
	})
}
