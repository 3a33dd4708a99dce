package runner

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// closes closes Runners whose loop is about to tell of a process that has ended,
// and to read then that a signal came.
func closes() int {
	for range 20 {
		if err := closeAmid(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 0
}

func closeAmid() error {
	r, err := New(Options{NoSubreaper: true})
	if err != nil {
		return err
	}
	r.exits = make(chan Exited)
	var of [2]*Process
	for i := range of {
		if of[i], err = r.Start(shell("exec sleep 100")); err != nil {
			return err
		}
	}
	// The loop waits for who takes the first exit; the second, and the news of a
	// signal, are there by the time that somebody does.
	for _, p := range of {
		pidfd := p.e.pidfd
		if err := p.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		for p == of[0] && r.watches(p) {
			runtime.Gosched()
		}
		if p == of[1] {
			if err := readable(pidfd); err != nil {
				return err
			}
		}
	}
	r.poke()
	if err := readable(r.wake); err != nil {
		return err
	}
	<-r.exits
	for r.watches(of[1]) {
		runtime.Gosched()
	}
	r.Close()
	return nil
}

func (r *Runner) watches(p *Process) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byPID[p.PID] != nil
}

func readable(fd int) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err != unix.EINTR {
			return err
		}
	}
}

// TestCloseAmidSignals: what Close says to the loop is not lost with a signal
// that came just before it.
func TestCloseAmidSignals(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe)
	cmd.Env = append(os.Environ(), "LEGION_TEST_CLOSES=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
