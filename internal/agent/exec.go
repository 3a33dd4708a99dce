package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
)

// exitStatus is the error of a command that has not ended with 0.
type exitStatus int

var _ utilexec.ExitError = exitStatus(1)

func (s exitStatus) Error() string   { return fmt.Sprintf("exit status %d", int(s)) }
func (s exitStatus) String() string  { return s.Error() }
func (s exitStatus) Exited() bool    { return true }
func (s exitStatus) ExitStatus() int { return int(s) }

// ExecInContainer runs a command in the surroundings of a container's process.
// legiond starts it; the streams are between here and the process alone.
func (k *kubelet) ExecInContainer(ctx context.Context, _, uid, container string, argv []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	open := openPipes
	if tty {
		open = func(in io.Reader, out, _ io.Writer) (*stdio, error) { return openTerminal(in, out, resize) }
	}
	s, err := open(in, out, errOut)
	if err != nil {
		return fmt.Errorf("cannot open the streams of %q: %w", argv, err)
	}
	defer s.close()
	exit, err := k.host.Exec(ctx, podspec.GroupName(types.UID(uid)), hostapi.ExecRequest{Service: container, Argv: argv, TTY: tty}, s.theirs)
	s.drain()
	switch {
	case err != nil:
		return err
	case exit.Unknown:
		return errors.New("how it ended is not known")
	case exit.Signal != 0:
		return exitStatus(128 + exit.Signal)
	case exit.Code != 0:
		return exitStatus(exit.Code)
	}
	return nil
}

// stdio are the standard streams of a process, between the process's ends and
// those of the client.
type stdio struct {
	theirs [3]*os.File
	// ours are the ends to close; outputs, among them, are copied to the client.
	ours    []*os.File
	outputs []*output
}

type output struct {
	from   *os.File
	to     io.Writer
	copied chan struct{}
}

// openPipes connects what the client wants with pipes, and the rest with
// /dev/null.
func openPipes(in io.Reader, out, errOut io.Writer) (*stdio, error) {
	s := &stdio{}
	var err error
	if in == nil {
		s.theirs[0], err = os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	} else {
		var to *os.File
		if s.theirs[0], to, err = pipe(0); err == nil {
			s.ours = append(s.ours, to)
			go func() {
				_, _ = io.Copy(to, in) // the process may end without reading it
				_ = to.Close()
			}()
		}
	}
	for i, w := range []io.Writer{out, errOut} {
		if err != nil {
			break
		}
		if w == nil {
			s.theirs[i+1], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
			continue
		}
		var from *os.File
		if s.theirs[i+1], from, err = pipe(1); err == nil {
			s.copy(from, w)
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// pipe makes one whose end number theirs is for a process, and blocks.
func pipe(theirs int) (their, our *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[1-theirs], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[theirs]), "pipe"), os.NewFile(uintptr(fds[1-theirs]), "pipe"), nil
}

// openTerminal connects the client with a terminal.
func openTerminal(in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) (*stdio, error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, fmt.Errorf("open a terminal: %w", err)
	}
	s := &stdio{theirs: [3]*os.File{slave, slave, slave}, ours: []*os.File{master}}
	if in != nil {
		go func() { _, _ = io.Copy(master, in) }()
	}
	if out == nil {
		out = io.Discard
	}
	s.copy(master, out)
	go func() {
		for size := range resize {
			_ = pty.Setsize(master, &pty.Winsize{Rows: size.Height, Cols: size.Width}) // it may be closed
		}
	}()
	return s, nil
}

func (s *stdio) copy(from *os.File, to io.Writer) {
	o := &output{from, to, make(chan struct{})}
	s.ours, s.outputs = append(s.ours, from), append(s.outputs, o)
	go func() {
		defer close(o.copied)
		_, _ = io.Copy(to, from)
	}()
}

// drain passes on all that the process has written. What it has left behind may
// hold its ends open: their end is not waited for.
func (s *stdio) drain() {
	var all sync.WaitGroup
	for _, o := range s.outputs {
		all.Go(o.drain)
	}
	all.Wait()
}

func (o *output) drain() {
	_ = o.from.SetReadDeadline(time.Unix(1, 0))
	<-o.copied
	_ = o.from.SetReadDeadline(time.Time{})
	raw, err := o.from.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n := 0
		_ = raw.Read(func(fd uintptr) bool {
			n, err = syscall.Read(int(fd), buf)
			return true
		})
		if n <= 0 && !errors.Is(err, syscall.EINTR) {
			return
		}
		if n > 0 {
			if _, err := o.to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

func (s *stdio) close() {
	for _, f := range append(s.ours, s.theirs[:]...) {
		_ = f.Close() // some are closed already
	}
}
