package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one process of the machine.
type process struct {
	PID     int
	Command string
}

func (p process) String() string { return fmt.Sprintf("%s (pid %d)", p.Command, p.PID) }

// processes finds what runs for this fleet: what is in its cgroup, what names
// its directory in a command line, and what writes into one of its log pipes.
// A process that another user owns shows less; it is not ours either.
func (f *Fleet) processes() []process {
	inside := f.Dir + "/"
	var found []process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == os.Getppid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		cmdline, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		if len(cmdline) == 0 { // a zombie or a kernel thread
			continue
		}
		argv := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		if f.runs(argv, inside) || f.inCgroup(proc) || writesInto(proc, inside) {
			found = append(found, process{pid, strings.Join(argv, " ")})
		}
	}
	return found
}

// runs: one of our programs with an argument that names the fleet.
func (f *Fleet) runs(argv []string, inside string) bool {
	if len(argv) < 3 || filepath.Dir(argv[0]) != f.Bin && !strings.HasPrefix(argv[0], f.Bin+"/") {
		return false
	}
	if filepath.Base(argv[0]) == "legion" || filepath.Base(argv[0]) == "legion-server" && !strings.HasPrefix(argv[1], "-") {
		return false // a command of a person: legion logs, legion kubectl
	}
	for i, a := range argv[1:] {
		if strings.HasPrefix(a, inside) || a == f.Dir && argv[i] == "--dir" {
			return true
		}
	}
	return false
}

func (f *Fleet) inCgroup(proc string) bool {
	if f.state.Cgroup == "" {
		return false
	}
	data, _ := os.ReadFile(filepath.Join(proc, "cgroup"))
	for line := range bytes.Lines(data) {
		path, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::"))
		if !ok {
			continue
		}
		mount, err := cgroupMount()
		if err != nil {
			return false
		}
		full := filepath.Join(mount, string(path))
		return full == f.state.Cgroup || strings.HasPrefix(full, f.state.Cgroup+"/")
	}
	return false
}

// writesInto: stdout or stderr is a pipe in the fleet's directory.
func writesInto(proc, inside string) bool {
	for _, fd := range []string{"fd/1", "fd/2"} {
		target, err := os.Readlink(filepath.Join(proc, fd))
		if err != nil || !strings.HasPrefix(target, inside) {
			continue
		}
		if st, err := os.Stat(filepath.Join(proc, fd)); err == nil && st.Mode()&os.ModeNamedPipe != 0 {
			return true
		}
	}
	return false
}

// waitExit waits until a process has ended, whoever its parent is.
func waitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// startHost starts the fleet's legiond in a session of its own and waits until
// it says that it is ready, or has ended.
func (f *Fleet) startHost(ctx context.Context) error {
	log, err := os.OpenFile(f.path("legiond.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	from, _ := log.Seek(0, 2)
	ready, socket, err := notifySocket()
	if err != nil {
		return fmt.Errorf("cannot listen for the word of legiond: %w", err)
	}
	defer ready.Close()
	defer os.RemoveAll(filepath.Dir(socket))

	args := []string{"--dir", f.Dir, "--units", f.path("units"), "--boot", bootTarget}
	if f.state.Cgroup != "" {
		args = append(args, "--cgroup", f.state.Cgroup)
	}
	cmd := exec.Command(f.program("legiond"), args...)
	cmd.Dir = "/"
	cmd.Env = append(keepEnvironment(), "NOTIFY_SOCKET="+socket, "PATH="+basePath)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start legiond: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	word := make(chan struct{})
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := ready.Read(buf)
			if err != nil {
				return
			}
			if bytes.Contains(buf[:n], []byte("READY=1")) {
				close(word)
				return
			}
		}
	}()
	select {
	case <-word:
		return nil
	case err := <-ended:
		return fmt.Errorf("legiond ended instead of becoming ready (%v); it said in %s:\n%s", err, f.path("legiond.log"), tail(f.path("legiond.log"), from))
	case <-ctx.Done():
		return fmt.Errorf("legiond (pid %d) has not become ready: %w; see %s", cmd.Process.Pid, context.Cause(ctx), f.path("legiond.log"))
	}
}

// notifySocket opens a socket for sd_notify(3) messages.
func notifySocket() (*net.UnixConn, string, error) {
	dir, err := os.MkdirTemp("", "legion-up-")
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, "", err
	}
	return conn, path, nil
}

// keepEnvironment is what a daemon may know of the person who started it.
func keepEnvironment() []string {
	var env []string
	for _, name := range []string{"HOME", "USER", "LOGNAME", "LANG", "TZ", "XDG_RUNTIME_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// tail is the end of what a file got since an offset.
func tail(path string, from int64) string {
	data, err := os.ReadFile(path)
	if err != nil || int64(len(data)) <= from {
		return "  (nothing)"
	}
	lines := strings.Split(strings.TrimSpace(string(data[from:])), "\n")
	if len(lines) > 10 {
		lines = lines[len(lines)-10:]
	}
	return "  " + strings.Join(lines, "\n  ")
}

// waitGone asks again and again until gone says so; for what the kernel tells
// nobody about.
func waitGone(ctx context.Context, gone func() bool) bool {
	for !gone() {
		select {
		case <-ctx.Done():
			return gone()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return true
}
