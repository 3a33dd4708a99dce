package runner

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// Output runs a command to its end and returns up to limit bytes of what it
// wrote on both streams. When ctx ends first the process is killed.
func (r *Runner) Output(ctx context.Context, q Request, limit int) (service.Exit, []byte, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return service.Exit{}, nil, fmt.Errorf("cannot start %s: make a pipe: %w", q.title(), err)
	}
	// The process opens the write end by name, as it would a FIFO.
	q.Stdout = fmt.Sprintf("/proc/self/fd/%d", pipe[1])
	q.Stderr = q.Stdout
	c := service.ExecContext{}
	if q.Context != nil {
		c = *q.Context
	}
	c.StandardOutput, c.StandardError = "", "" // not where the service's own goes
	q.Context = &c
	read := os.NewFile(uintptr(pipe[0]), "output")
	defer read.Close()
	done := make(chan service.Exit, 1)
	e, err := r.start(&q, done)
	unix.Close(pipe[1])
	if err != nil {
		return service.Exit{}, nil, err
	}
	kept := make(chan []byte, 1)
	go func() { kept <- readUpTo(read, limit) }()
	exit, err := r.await(ctx, e, done)
	// What it left behind may hold the pipe open: do not wait for its end.
	_ = read.SetReadDeadline(time.Now())
	out := <-kept
	rest := make([]byte, limit-len(out))
	if n, err := unix.Read(pipe[0], rest); err == nil && n > 0 {
		out = append(out, rest[:n]...)
	}
	return exit, out, err
}

// readUpTo keeps the first limit bytes and reads on, so that the writer is
// never blocked.
func readUpTo(from io.Reader, limit int) []byte {
	var kept []byte
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		kept = append(kept, buf[:min(n, limit-len(kept))]...)
		if err != nil {
			return kept
		}
	}
}
