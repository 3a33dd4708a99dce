// Package journal keeps what services write. A service's standard output and
// error are two FIFOs, which one goroutine reads for the whole host; the lines
// go to files in the CRI log format, which grep and kubectl's reader know:
//
//	2026-01-02T15:04:05.000000000Z stdout F text
//
// A service has one set of files, numbered upwards and bounded in size and
// number; beside them the file "runs" tells where each run begins that has written
// anything, or one after it; of the others one file tells for all. No line is
// lost or stored twice where legiond is killed, as far as a FIFO holds. No service
// ever waits for the disk: when it is full, the newest lines stay in memory
// until there is room again.
package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// Options for Open; zero fields take the defaults.
type Options struct {
	// RunDir holds the FIFOs; the default is "run" beside the log directory.
	RunDir string
	// MaxBytes is the size at which a file is full, 10 MiB; MaxFiles is how
	// many are kept for a service, 5.
	MaxBytes int64
	MaxFiles int
	// MaxPending bounds what is kept in memory for a service while its files
	// cannot be written, 1 MiB.
	MaxPending int
	// Retry is how often writing is tried again then, 1 s.
	Retry time.Duration
}

// Query says what to read.
type Query = hostapi.LogQuery

// ErrNotFound is wrapped by the errors of Read for a service or a run that has
// no log.
var ErrNotFound = errors.New("not found")

// Journal keeps the logs of one host.
type Journal struct {
	dir string
	o   Options

	mu   sync.Mutex
	logs map[key]*log
	byFD map[int]*stream
	// begun is what services have not written down themselves.
	begun *beginnings
	// failing are those whose files cannot be written now.
	failing map[*log]bool
	open    []*log // those with an open file, the one used last at the end

	epoll, wake int
	copies      [2]int // a pipe, for looking into the FIFOs
	buf         []byte // what is read
	out         []byte // what is written
	busy        []*stream
	// note is the file of the note of what is moving; noted says that it tells
	// of something.
	note   *os.File
	moving *move
	noted  bool
	closed bool
	done   chan struct{}
}

type key struct{ group, service string }

// Open makes a journal of the directory and starts to collect.
func Open(dir string, o Options) (*Journal, error) {
	if o.RunDir == "" {
		o.RunDir = filepath.Join(filepath.Dir(dir), "run")
	}
	o.MaxBytes = orDefault(o.MaxBytes, 10<<20)
	o.MaxFiles = orDefault(o.MaxFiles, 5)
	o.MaxPending = orDefault(o.MaxPending, 1<<20)
	o.Retry = orDefault(o.Retry, time.Second)
	for _, d := range []string{dir, o.RunDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("cannot keep logs: %w", err)
		}
	}
	j := &Journal{
		dir: dir, o: o, logs: make(map[key]*log), byFD: make(map[int]*stream), failing: make(map[*log]bool),
		buf: make([]byte, 64<<10), done: make(chan struct{}),
	}
	var err error
	if j.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot collect logs: epoll_create1: %w", err)
	}
	if j.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(j.epoll)
		return nil, fmt.Errorf("cannot collect logs: eventfd: %w", err)
	}
	if err := j.watch(j.wake, 0); err != nil {
		return nil, fmt.Errorf("cannot collect logs: %w", err)
	}
	if err := unix.Pipe2(j.copies[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("cannot collect logs: pipe: %w", err)
	}
	if j.begun, err = openBeginnings(j.o.RunDir); err != nil {
		return nil, fmt.Errorf("cannot collect logs: %w", err)
	}
	if err := j.resume(); err != nil {
		return nil, fmt.Errorf("cannot collect logs: %w", err)
	}
	go j.collect()
	return j, nil
}

func orDefault[T int | int64 | time.Duration](v, standard T) T {
	if v <= 0 {
		return standard
	}
	return v
}

func (j *Journal) watch(fd int, how uint32) error {
	event := unix.EpollEvent{Events: unix.EPOLLIN | how, Fd: int32(fd)}
	if err := unix.EpollCtl(j.epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// Dir is where the files of a service are.
func (j *Journal) Dir(group, service string) string { return filepath.Join(j.dir, group, service) }

// Attach opens the FIFOs of a service for a run and returns their names, which
// stay the same for the next runs and over restarts of legiond. What the run
// before has written and nobody has read yet is read first. Attaching a run
// again, after a crash, goes on where it was.
func (j *Journal) Attach(group, service string, run uint64) (stdout, stderr string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, err := j.load(group, service)
	if err != nil {
		return "", "", err
	}
	if l.run() != run || !l.attached {
		j.endRun(l)
	}
	dir := filepath.Join(j.o.RunDir, group)
	paths := [2]string{dir + "/" + service + ".stdout", dir + "/" + service + ".stderr"}
	if !l.attached {
		if err := makeDir(dir); err != nil {
			return "", "", fmt.Errorf("cannot keep the log of %s: %w", l.title(), err)
		}
	}
	for i := range l.streams {
		if l.streams[i].fd >= 0 {
			continue
		}
		if err := j.openFIFO(&l.streams[i], paths[i]); err != nil {
			return "", "", fmt.Errorf("cannot keep the log of %s: %w", l.title(), err)
		}
	}
	l.attached, l.ended = true, false
	if l.run() != run {
		j.mark(l, run)
	}
	l.tell()
	return paths[0], paths[1], nil
}

// makeDir is os.MkdirAll where as a rule only the last two are to be made.
func makeDir(dir string) error {
	err := unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.ENOENT) {
		_ = unix.Mkdir(filepath.Dir(dir), 0o755)
		err = unix.Mkdir(dir, 0o755)
	}
	if err != nil {
		return os.MkdirAll(dir, 0o755)
	}
	return nil
}

// maxRoomy is how many FIFOs get more room than the kernel's 64 KiB.
const maxRoomy = 64

// openFIFO opens for writing as well, so that a FIFO without writer is not at
// its end; and not blocking, which is of this open file alone.
func (j *Journal) openFIFO(s *stream, path string) error {
	err := unix.Mkfifo(path, 0o600)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Lstat(path, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
			if err = os.Remove(path); err == nil {
				err = unix.Mkfifo(path, 0o600)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("make FIFO %s: %w", path, err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open FIFO %s: %w", path, err)
	}
	// Room for what services write while legiond is not there. The kernel
	// counts the room of all pipes of a user, so many services get less each.
	if len(j.byFD) < maxRoomy {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 256<<10)
	}
	if err := j.watch(fd, unix.EPOLLET); err != nil {
		unix.Close(fd)
		return err
	}
	s.fd = fd
	j.byFD[fd] = s
	return nil
}

// Ended tells that the run of a service is over: what it has written is stored
// and readers that follow this run come to their end. The FIFOs stay open for
// processes that it left behind.
func (j *Journal) Ended(group, service string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if l := j.logs[key{group, service}]; l != nil {
		j.endRun(l)
	}
}

func (j *Journal) endRun(l *log) {
	for i := range l.streams {
		s := &l.streams[i]
		switch {
		case s.fd < 0:
		case j.drain(s):
			j.busy = append(j.busy, s)
			j.poke()
		default:
			j.read(s, true)
		}
	}
	l.ended = true
	l.tell()
}

// Detach ends the run and closes the FIFOs. Nobody must write to them any more.
func (j *Journal) Detach(group, service string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if l := j.logs[key{group, service}]; l != nil {
		j.endRun(l)
		j.closeStreams(l)
		j.closeFile(l)
		l.attached = false
		l.tell()
	}
}

func (j *Journal) poke() { _, _ = unix.Write(j.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

func (j *Journal) closeStreams(l *log) {
	for i := range l.streams {
		s := &l.streams[i]
		if s.fd >= 0 {
			delete(j.byFD, s.fd)
			unix.Close(s.fd)
			s.fd = -1
		}
	}
}

// Remove forgets a group with all it has written.
func (j *Journal) Remove(group string) error {
	if err := checkName(group); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for k, l := range j.logs {
		if k.group == group {
			j.closeStreams(l)
			j.closeFile(l)
			l.removed = true
			l.tell()
			delete(j.logs, k)
			delete(j.failing, l)
		}
	}
	err := errors.Join(os.RemoveAll(filepath.Join(j.dir, group)), os.RemoveAll(filepath.Join(j.o.RunDir, group)), j.begun.remove(group))
	if err != nil {
		return fmt.Errorf("cannot remove the log of %s: %w", group, err)
	}
	return nil
}

// Close stops collecting; what is in memory is written if it can be. The FIFOs
// keep what is written until the next Open and Attach, and the beginning of a
// line.
func (j *Journal) Close() {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return
	}
	j.closed = true
	j.mu.Unlock()
	j.poke()
	<-j.done
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range j.logs {
		j.flush(l)
		j.closeStreams(l)
		j.closeFile(l)
		l.removed = true
		l.tell()
	}
	for _, fd := range []int{j.epoll, j.wake, j.copies[0], j.copies[1]} {
		unix.Close(fd)
	}
	_ = j.note.Close()
	_ = j.begun.file.Close()
}

// Problems says in a sentence each what an operator must know.
func (j *Journal) Problems() []service.Warning {
	j.mu.Lock()
	defer j.mu.Unlock()
	waiting, lost := 0, 0
	var cause error
	for l := range j.failing {
		waiting++
		lost += l.lost
		cause = l.failed
	}
	if waiting == 0 {
		return nil
	}
	todo := "see to it that this directory can be written"
	if full(cause) {
		todo = "make room on that file system"
	}
	text := fmt.Sprintf("the logs of %s cannot be written (%v); their last lines are kept in memory, up to %d KiB each, and written as soon as that works again: %s",
		count(waiting, "service"), plainCause(cause), j.o.MaxPending>>10, todo)
	if lost > 0 {
		text += fmt.Sprintf("; %s lost so far", count(lost, "line"))
	}
	return []service.Warning{{File: j.dir, Text: text}}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func plainCause(err error) error {
	if e, ok := errors.AsType[unix.Errno](err); ok {
		return e
	}
	return err
}

func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || len(name) > 240 {
		return fmt.Errorf("cannot keep a log of %q: not a name for a directory", name)
	}
	return nil
}
