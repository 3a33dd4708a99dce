package runner

import (
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A forker is one thread with a table of file descriptors of its own, which
// holds next to nothing. A child gets a copy of the table of the thread that
// forks it, and closes the copy at exec; legiond has three descriptors for each
// service, so with a thousand services that would be most of what a start costs.
type forker struct {
	asks *forkAsks
	// self is the pidfd of this program in the thread's own table: what is to be
	// passed on is fetched through it (pidfd_getfd(2)).
	self int
}

// forkAsks are the forks that are asked for.
type forkAsks struct {
	mu    sync.Mutex
	queue []*forkAsk
	// news wakes forkers that have found the queue empty.
	news chan struct{}
}

type forkAsk struct {
	path string
	argv []string
	attr *syscall.ProcAttr

	pid  int
	born span
	err  error
	done chan struct{}
}

// put asks for a fork. A forker is on a thread of its own, and waking it and
// sending it to sleep costs half as much as the fork: so the others that are
// about to ask may do so first.
func (q *forkAsks) put(a *forkAsk) {
	q.mu.Lock()
	q.queue = append(q.queue, a)
	q.mu.Unlock()
	runtime.Gosched()
	q.mu.Lock()
	left := slices.Contains(q.queue, a)
	q.mu.Unlock()
	if left {
		select {
		case q.news <- struct{}{}:
		default: // as many news as there are forkers
		}
	}
}

// take is nil where nothing is asked for.
func (q *forkAsks) take() *forkAsk {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return nil
	}
	a := q.queue[0]
	q.queue = slices.Delete(q.queue, 0, 1)
	return a
}

// withdraw takes an ask back; false if a forker has it.
func (q *forkAsks) withdraw(a *forkAsk) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.queue, a)
	if i >= 0 {
		q.queue = slices.Delete(q.queue, i, i+1)
	}
	return i >= 0
}

// forkers is how many forks are under way at most: each waits for its child's
// exec, which keeps a processor busy.
const forkers = 2

// newForkers starts the threads and returns how to ask them, nil where the kernel
// (before 5.9) or a seccomp filter does not let them be.
func newForkers(closing <-chan struct{}) *forkAsks {
	asks := &forkAsks{news: make(chan struct{}, forkers)}
	for i := range min(forkers, runtime.NumCPU()) {
		f := &forker{asks: asks, self: -1}
		ready := make(chan error)
		go f.run(closing, ready)
		if <-ready != nil && i == 0 {
			return nil
		}
	}
	return asks
}

func (f *forker) run(closing <-chan struct{}, ready chan<- error) {
	// Never unlocked: the thread ends with this goroutine.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread's table is what pidfd_getfd looks into.
		go f.run(closing, ready)
		<-closing
		return
	}
	err := f.ownTable()
	ready <- err
	if err != nil {
		return
	}
	for {
		for a := f.asks.take(); a != nil; a = f.asks.take() {
			a.pid, a.born, a.err = f.fork(a)
			close(a.done)
		}
		select {
		case <-f.asks.news:
		case <-closing:
			return
		}
	}
}

// ownTable leaves the thread the standard descriptors, those that the Go runtime
// itself uses on any thread (its epoll and eventfd, as a garbage collection may
// begin here), and self.
func (f *forker) ownTable() error {
	// Makes the runtime open them, if it has not yet.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	r.Close()
	w.Close()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	var keep []int
	for _, name := range names {
		if n, err := strconv.Atoi(name.Name()); err == nil && n > 2 && ofRuntime(n) {
			keep = append(keep, n)
		}
	}
	slices.Sort(keep)
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return err
	}
	first := 3
	for _, n := range append(keep, math.MaxUint32) {
		if err := unix.CloseRange(uint(first), uint(n-1), 0); err != nil && n > first {
			return err
		}
		first = n + 1
	}
	for _, n := range keep {
		if !ofRuntime(n) { // closed and taken again meanwhile
			unix.Close(n)
		}
	}
	if f.self, err = unix.PidfdOpen(unix.Getpid(), 0); err != nil {
		return err
	}
	fd, err := unix.PidfdGetfd(f.self, 2, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// ofRuntime says whether a descriptor of this thread may be the runtime's.
func ofRuntime(fd int) bool {
	link, _ := os.Readlink("/proc/thread-self/fd/" + strconv.Itoa(fd))
	return strings.Contains(link, "[eventpoll]") || strings.Contains(link, "[eventfd]")
}

// fork brings the descriptors that the child is to have into this thread's table
// and forks. It does not open the child's pidfd, which would be in that table.
func (f *forker) fork(a *forkAsk) (int, span, error) {
	var fetched []int
	defer func() {
		for _, fd := range fetched {
			unix.Close(fd)
		}
	}()
	fetch := func(fd int) (int, error) {
		n, err := unix.PidfdGetfd(f.self, fd, 0)
		if err == nil {
			fetched = append(fetched, n)
		}
		return n, err
	}
	attr, sys := *a.attr, *a.attr.Sys
	attr.Sys, attr.Files = &sys, slices.Clone(attr.Files)
	for i, fd := range attr.Files {
		n, err := fetch(int(fd))
		if err != nil {
			return 0, span{}, err
		}
		attr.Files[i] = uintptr(n)
	}
	if sys.UseCgroupFD {
		n, err := fetch(sys.CgroupFD)
		if err != nil {
			return 0, span{}, err
		}
		sys.CgroupFD = n
	}
	return forkExec(a.path, a.argv, &attr)
}

// forkExec forks on this thread, whose signal mask the child inherits: it is
// empty, whoever started legiond.
func forkExec(path string, argv []string, attr *syscall.ProcAttr) (int, span, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var none, old unix.Sigset_t
	masked := unix.PthreadSigmask(unix.SIG_SETMASK, &none, &old) == nil
	born := span{from: bootTicks()}
	pid, err := syscall.ForkExec(path, argv, attr)
	born.to = bootTicks()
	if masked {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	}
	return pid, born, err
}
