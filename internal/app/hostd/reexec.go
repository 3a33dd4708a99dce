package hostd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/journald"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/service"
)

// legacy is what one legiond leaves to the next in the same process, in a
// memory file whose descriptor is in the environment. The rest is in the state
// directory, as after a crash; only that here no descriptor is closed, and
// nothing that was on its way is lost.
type legacy struct {
	Notify   int `json:"notify"`
	Listener int `json:"listener"`
	Syslog   int `json:"syslog,omitempty"`
	// Journal are the sockets of systemd's journal.
	Journal *journald.Handover `json:"journal,omitempty"`
	Host    host.Handover      `json:"host"`
}

const legacyVariable = "LEGION_HANDOVER"

// inherit reads it; nil where there is none.
func inherit() (*legacy, error) {
	value, ok := os.LookupEnv(legacyVariable)
	if !ok {
		return nil, nil
	}
	_ = os.Unsetenv(legacyVariable)
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s=%s is not the number of a descriptor", legacyVariable, value)
	}
	f := os.NewFile(uintptr(fd), "handover")
	defer f.Close()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("cannot read what the legiond before has left: %w", err)
	}
	l := &legacy{}
	if err := json.Unmarshal(data, l); err != nil {
		return nil, fmt.Errorf("cannot read what the legiond before has left: %w", err)
	}
	return l, nil
}

func (l *legacy) listener(path string) (*net.UnixListener, error) {
	if l == nil {
		return listenOn(path)
	}
	f := os.NewFile(uintptr(l.Listener), "listener")
	defer f.Close()
	any, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot go on listening on %s: %w", path, err)
	}
	u, ok := any.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("cannot go on listening on %s: it is no unix socket", path)
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// untilStopped is a listener that stops without being closed.
type untilStopped struct{ net.Listener }

func (u *untilStopped) Close() error {
	return u.Listener.(*net.UnixListener).SetDeadline(time.Unix(1, 0))
}

// succeed executes the program in this process; it returns only if that fails.
func succeed(program string, v host.Handover, notes *notify.Socket, listener *net.UnixListener, sayings sayings) error {
	fail := func(err error) error {
		return fmt.Errorf("cannot execute %s anew: %w; start legiond again: what it runs goes on and is adopted", program, err)
	}
	n, err := notes.File()
	if err != nil {
		return fail(err)
	}
	l, err := listener.File()
	if err != nil {
		return fail(err)
	}
	fd, err := unix.MemfdCreate("legion-handover", 0)
	if err != nil {
		return fail(err)
	}
	left := legacy{Notify: int(n.Fd()), Listener: int(l.Fd()), Host: v}
	keep := append(v.FDs(), fd, left.Notify, left.Listener)
	more, err := sayings.leave(&left)
	if err != nil {
		return fail(err)
	}
	keep = append(keep, more...)
	data, err := json.Marshal(left)
	if err != nil {
		return fail(err)
	}
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return fail(err)
		}
		data = data[n:]
	}
	for _, fd := range keep {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fail(err)
		}
	}
	env := append(os.Environ(), legacyVariable+"="+strconv.Itoa(fd))
	err = syscall.Exec(program, os.Args, env)
	runtime.KeepAlive(n)
	runtime.KeepAlive(l)
	return fail(err)
}

// successor is the program that would take this one's place.
type successor struct {
	program string
	procs   *runner.Runner
}

// check has it tell its version: what cannot do so is not executed.
func (s successor) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	exit, out, err := s.procs.Output(ctx, runner.Request{
		Group: "legiond", Command: service.Command{Path: s.program, Argv: []string{s.program, "--version"}}, Context: &service.ExecContext{},
	}, 4096)
	if err != nil {
		return fmt.Errorf("%s --version: %w", s.program, err)
	}
	if exit.Code != 0 || exit.Signal != 0 {
		return fmt.Errorf("%s --version failed: %s", s.program, strings.TrimSpace(string(out)))
	}
	return nil
}
