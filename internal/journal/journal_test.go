package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string, o Options) *Journal {
	t.Helper()
	if o.RunDir == "" {
		o.RunDir = t.TempDir()
	}
	j, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.Close)
	return j
}

// daemon is the service's side of the FIFOs.
type daemon struct {
	t        *testing.T
	out, err *os.File
}

func attach(t *testing.T, j *Journal, group, service string, run uint64) *daemon {
	t.Helper()
	stdout, stderr, err := j.Attach(group, service, run)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, out: fifo(t, stdout), err: fifo(t, stderr)}
	t.Cleanup(func() { d.out.Close(); d.err.Close() })
	return d
}

func fifo(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), path)
}

func (d *daemon) print(format string, args ...any) {
	d.t.Helper()
	if _, err := fmt.Fprintf(d.out, format, args...); err != nil {
		d.t.Fatal(err)
	}
}

func read(t *testing.T, j *Journal, group, service string, q Query) string {
	t.Helper()
	var b bytes.Buffer
	if err := j.Read(t.Context(), group, service, q, &b); err != nil {
		t.Fatal(err)
	}
	return texts(b.String())
}

var header = regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([FP]) `)

// texts takes the times off.
func texts(s string) string { return header.ReplaceAllString(s, "") }

// following reads as it comes.
type following struct {
	t     *testing.T
	lines chan string
	end   chan error
	stop  func()
}

func follow(t *testing.T, j *Journal, group, service string, q Query) *following {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	f := &following{t: t, lines: make(chan string, 10000), end: make(chan error, 1), stop: cancel}
	q.Follow = true
	go func() {
		err := j.Read(ctx, group, service, q, w)
		w.Close()
		f.end <- err
	}()
	go func() {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			f.lines <- texts(lines.Text())
		}
		close(f.lines)
	}()
	t.Cleanup(func() { cancel(); r.Close() })
	return f
}

func (f *following) want(lines ...string) {
	f.t.Helper()
	deadline := time.After(time.Minute)
	for _, want := range lines {
		select {
		case got := <-f.lines:
			if got != want {
				f.t.Fatalf("got %q, want %q", got, want)
			}
		case <-deadline:
			f.t.Fatalf("no %q came", want)
		}
	}
}

func (f *following) wantEnd() {
	f.t.Helper()
	select {
	case err := <-f.end:
		if err != nil {
			f.t.Error(err)
		}
	case <-time.After(time.Minute):
		f.t.Fatal("still following")
	}
}

func TestLinesOfTwoStreams(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	d := attach(t, j, "pod-1", "main", 1)
	f := follow(t, j, "pod-1", "main", Query{Tail: -1})
	d.print("one\ntwo\n\n")
	f.want("one", "two", "")
	fmt.Fprintln(d.err, "error")
	f.want("error")
	d.print("begun, ")
	d.print("ended\n")
	f.want("begun, ended")
	d.print("no newline at the end")
	j.Ended("pod-1", "main")
	f.want("no newline at the end")
	data, err := os.ReadFile(filepath.Join(dir, "pod-1/main/000001.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" stdout F two\n", " stderr F error\n", " stdout F \n"} {
		if !bytes.Contains(data, []byte(want)) {
			t.Errorf("no %q in\n%s", want, data)
		}
	}
	f.stop()
	f.wantEnd()
}

func TestLongLinesAreStoredInPieces(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	d := attach(t, j, "a.service", "a.service", 1)
	f := follow(t, j, "a.service", "a.service", Query{Tail: -1})
	long := strings.Repeat("x", 40000)
	d.print("%s\nnext\n", long)
	f.want(long[:maxLine], long[:maxLine], long[:40000-2*maxLine], "next")
	d.print("%s\n", long[:maxLine])
	f.want(long[:maxLine])
	var b bytes.Buffer
	if err := j.Read(t.Context(), "a.service", "", Query{Tail: -1}, &b); err != nil {
		t.Fatal(err)
	}
	flags := ""
	for _, m := range header.FindAllStringSubmatch(b.String(), -1) {
		flags += m[2]
	}
	if flags != "PPFFF" {
		t.Errorf("flags %s", flags)
	}
}

func TestRuns(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	j := open(t, dir, Options{RunDir: run})
	if err := j.Read(t.Context(), "a", "a", Query{}, io.Discard); !errors.Is(err, ErrNotFound) {
		t.Errorf("before it ran: %v", err)
	}
	d := attach(t, j, "a", "a", 4)
	first := follow(t, j, "a", "a", Query{Tail: -1, Run: 4})
	all := follow(t, j, "a", "a", Query{Tail: -1})
	d.print("of 4\nof 4 too\n") // read by Attach, if not before
	attach(t, j, "a", "a", 5)
	d.print("of 5\n")
	first.want("of 4", "of 4 too")
	first.wantEnd()
	all.want("of 4", "of 4 too", "of 5")
	check := func(j *Journal) {
		t.Helper()
		for _, c := range []struct {
			q    Query
			want string
		}{
			{Query{Tail: -1}, "of 4\nof 4 too\nof 5\n"},
			{Query{Tail: -1, Previous: true}, "of 4\nof 4 too\n"},
			{Query{Tail: 1, Previous: true}, "of 4 too\n"},
			{Query{Tail: -1, Run: 4}, "of 4\nof 4 too\n"},
			{Query{Tail: 9, Run: 5}, "of 5\n"},
			{Query{Tail: 2}, "of 4 too\nof 5\n"},
			{Query{Tail: 3}, "of 4\nof 4 too\nof 5\n"},
			{Query{Tail: 0}, ""},
			{Query{Tail: -1, Since: time.Now().Add(time.Hour)}, ""},
			{Query{Tail: -1, Since: time.Now().Add(-time.Hour)}, "of 4\nof 4 too\nof 5\n"},
		} {
			if got := read(t, j, "a", "a", c.q); got != c.want {
				t.Errorf("%+v: %q, want %q", c.q, got, c.want)
			}
		}
		if err := j.Read(t.Context(), "a", "a", Query{Tail: -1, Run: 3}, io.Discard); !errors.Is(err, ErrNotFound) || err.Error() != "a has no log of run 3: not found" {
			t.Errorf("run 3: %v", err)
		}
	}
	check(j)
	var b bytes.Buffer
	if err := j.Read(t.Context(), "a", "a", Query{Tail: -1, LimitBytes: 50}, &b); err != nil || b.Len() != 50 {
		t.Errorf("%d bytes, %v", b.Len(), err)
	}

	// The reader dies; the service writes on; another reader comes.
	j.Close()
	d.print("while away\n")
	j = open(t, dir, Options{RunDir: run})
	check(j) // not attached yet: what is on disk
	attach(t, j, "a", "a", 5)
	f := follow(t, j, "a", "a", Query{Tail: -1, Run: 5})
	f.want("of 5", "while away")
	j.Detach("a", "a")
	f.wantEnd()
	if err := j.Remove("a"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, run} {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != filepath.Base(j.notePath()) && e.Name() != filepath.Base(j.begun.file.Name()) {
				t.Errorf("left in %s: %v", d, e)
			}
		}
	}
}

func TestACrashLeavesHalfALine(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/a"), 0o755); err != nil {
		t.Fatal(err)
	}
	whole := "2026-01-02T15:04:05.000000000Z stdout F whole\n"
	if err := os.WriteFile(filepath.Join(dir, "a/a/000007.log"), []byte(whole+"2026-01-02T15:04:05.0000"), 0o644); err != nil {
		t.Fatal(err)
	}
	j := open(t, dir, Options{})
	d := attach(t, j, "a", "a", 1)
	f := follow(t, j, "a", "a", Query{Tail: -1})
	d.print("next\n")
	f.want("whole", "next")
}

func TestRotationIsFollowed(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{MaxBytes: 2000, MaxFiles: 3})
	d := attach(t, j, "a", "a", 1)
	f := follow(t, j, "a", "a", Query{Tail: -1})
	const n = 400
	var want []string
	for i := range n {
		d.print("line %d\n", i)
		want = append(want, fmt.Sprintf("line %d", i))
		if i%10 == 9 { // in step, or files would be gone before they are read
			f.want(want...)
			want = nil
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "a/a/*.log"))
	if err != nil || len(files) != 3 {
		t.Errorf("%v %v", files, err)
	}
	got := strings.Split(strings.TrimSpace(read(t, j, "a", "a", Query{Tail: 60})), "\n")
	if len(got) != 60 || got[0] != "line 340" || got[59] != "line 399" {
		t.Errorf("tail over files: %d lines, %q … %q", len(got), got[0], got[len(got)-1])
	}
	// The run's beginning is gone; what is left of it is shown.
	if got := read(t, j, "a", "a", Query{Tail: -1, Run: 1}); !strings.HasSuffix(got, "line 399\n") || strings.HasPrefix(got, "line 0\n") {
		t.Errorf("run 1: %.40q", got)
	}
}

// TestReadEndsWhereItWasAskedFor: who does not follow gets what there was, also
// from a service that writes on and on.
func TestReadEndsWhereItWasAskedFor(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	d, other := attach(t, j, "a", "a", 1), attach(t, j, "a", "b", 1)
	f, fo := follow(t, j, "a", "a", Query{Tail: -1}), follow(t, j, "a", "b", Query{Tail: -1})
	d.print("one\ntwo\n")
	other.print("three\n")
	f.want("one", "two")
	fo.want("three")
	var got strings.Builder
	err := j.Read(t.Context(), "a", "a", Query{Tail: -1}, writer(func(p []byte) {
		got.Write(p)
		d.print("meanwhile\n")
		f.want("meanwhile")
	}))
	if text := texts(got.String()); err != nil || text != "one\ntwo\n" {
		t.Errorf("%q, %v", text, err)
	}
	if got := read(t, j, "a", "", Query{Tail: -1}); got != "one\ntwo\nthree\nmeanwhile\n" {
		t.Errorf("of all services: %q", got)
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func TestServicesOfAGroupAreMerged(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	a, b := attach(t, j, "g", "a", 1), attach(t, j, "g", "b", 1)
	fa, fb := follow(t, j, "g", "a", Query{Tail: -1}), follow(t, j, "g", "b", Query{Tail: -1})
	for i := range 5 {
		a.print("a%d\n", i)
		fa.want(fmt.Sprintf("a%d", i))
		b.print("b%d\n", i)
		fb.want(fmt.Sprintf("b%d", i))
	}
	if got := strings.Fields(read(t, j, "g", "", Query{Tail: 3})); strings.Join(got, " ") != "b3 a4 b4" {
		t.Errorf("%v", got)
	}
	for tail, want := range map[int]string{-1: "a0 b0 a1 b1 a2 b2 a3 b3 a4 b4", 0: "", 1: "b4", 9: "b0 a1 b1 a2 b2 a3 b3 a4 b4", 20: "a0 b0 a1 b1 a2 b2 a3 b3 a4 b4"} {
		if got := strings.Fields(read(t, j, "g", "", Query{Tail: tail})); strings.Join(got, " ") != want {
			t.Errorf("the last %d: %v", tail, got)
		}
	}
	f := follow(t, j, "g", "", Query{Tail: 1})
	f.want("b4")
	a.print("more\n")
	f.want("more")
}

// smallDisk mounts a file system of 256 KiB; fill takes what is left of it.
func smallDisk(t *testing.T) (dir string, fill func(), makeRoom func()) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("legion-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount a small file system here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	fill = func() {
		file, err := os.Create(ballast)
		for err == nil {
			_, err = file.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return dir, fill, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDiskCostsTheOldestFileFirst(t *testing.T) {
	dir, fill, _ := smallDisk(t)
	j := open(t, dir, Options{RunDir: t.TempDir(), MaxBytes: 20 << 10})
	d := attach(t, j, "a", "a", 1)
	f := follow(t, j, "a", "a", Query{Tail: -1})
	line := strings.Repeat("x", 1000)
	for i := range 100 {
		if i == 60 {
			fill()
		}
		d.print("%d %s\n", i, line)
		f.want(fmt.Sprintf("%d %s", i, line))
	}
	if p := j.Problems(); len(p) != 0 {
		t.Errorf("%v", p)
	}
	if _, err := os.Stat(filepath.Join(dir, "a/a/000001.log")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the oldest file is still there: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir, fill, makeRoom := smallDisk(t)
	j := open(t, dir, Options{RunDir: t.TempDir(), MaxPending: 64 << 10, Retry: time.Millisecond})
	d := attach(t, j, "a", "a", 1)
	f := follow(t, j, "a", "a", Query{Tail: -1})
	d.print("first\n")
	f.want("first")
	fill()
	// More than fits into the file's last page, the FIFO and the memory: it
	// must not block.
	line := strings.Repeat("x", 1000)
	for i := range 1000 {
		d.print("%d %s\n", i, line)
	}
	attach(t, j, "a", "a", 2)
	d.print("of the second run\n")
	problems := j.Problems()
	if len(problems) != 1 {
		t.Fatalf("%v", problems)
	}
	for _, want := range []string{"the logs of 1 service cannot be written (no space left on device)", "make room on that file system", "lost so far"} {
		if !strings.Contains(problems[0].Text, want) {
			t.Errorf("no %q in %q", want, problems[0].Text)
		}
	}
	makeRoom()
	note, last, seen := regexp.MustCompile(`^legion: \d+ lines lost here, because the log could not be written: no space left on device$`), "", false
	for last != "of the second run" {
		select {
		case last = <-f.lines:
			seen = seen || note.MatchString(last)
		case <-time.After(time.Minute):
			t.Fatalf("not written when there was room; last line %.60q", last)
		}
	}
	if !seen {
		t.Error("no line tells of the loss")
	}
	if p := j.Problems(); len(p) != 0 {
		t.Errorf("still: %v", p)
	}
	if got := read(t, j, "a", "a", Query{Tail: -1, Run: 2}); got != "of the second run\n" {
		t.Errorf("second run: %.80q", got)
	}
}

func TestNames(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	for _, name := range []string{"", "..", "a/b", "."} {
		if _, _, err := j.Attach(name, "x", 1); err == nil {
			t.Errorf("attached %q", name)
		}
		if err := j.Remove(name); err == nil {
			t.Errorf("removed %q", name)
		}
	}
}

func BenchmarkCollect(b *testing.B) {
	j, err := Open(b.TempDir(), Options{RunDir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer j.Close()
	path, _, err := j.Attach("a", "a", 1)
	if err != nil {
		b.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	lines := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 40)
	b.SetBytes(int64(len(lines)))
	for b.Loop() {
		if _, err := unix.Write(fd, lines); err != nil {
			b.Fatal(err)
		}
	}
}

// begun is closed by the first write, even of nothing.
type begun struct {
	once sync.Once
	ch   chan struct{}
}

func (b *begun) Write(p []byte) (int, error) {
	b.once.Do(func() { close(b.ch) })
	return len(p), nil
}

// TestFollowerOfASilentServiceIsAnswered: a client that waits for an answer
// must not take a service that writes nothing for a host that hangs.
func TestFollowerOfASilentServiceIsAnswered(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	attach(t, j, "a", "a", 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := &begun{ch: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- j.Read(ctx, "a", "a", Query{Tail: -1, Follow: true}, b) }()
	select {
	case <-b.ch:
	case err := <-ended:
		t.Fatalf("the follower ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("nothing is said before the first line")
	}
}
