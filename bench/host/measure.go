package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// upFor is how long a daemon runs before it is killed: runit, s6 and
// daemontools hold a service back that has run for less than a second.
const upFor = 1100 * time.Millisecond

// measure starts a supervisor with n services, watches it, and ends it. api is
// what its requests took, where they are measured.
func measure(s *supervisor, dir string, n, kills int, idle time.Duration) (row, api string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	daemon := filepath.Join(dir, "daemon")
	if err := copyFile(daemon, "/bin/sh"); err != nil {
		return "", "", err
	}
	if err := file(0o644, script(dir), dir, "wait"); err != nil {
		return "", "", err
	}
	if err := unix.Mkfifo(filepath.Join(dir, "never"), 0o600); err != nil {
		return "", "", err
	}
	argv, err := s.write(dir, daemon, n)
	if err != nil {
		return "", "", err
	}
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return "", "", err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c := counter{file: daemon, there: map[int]bool{}, others: tasks()}
	begin := time.Now()
	defer killAll()
	if err := s.start(cmd); err != nil {
		return "", "", err
	}
	deadline := begin.Add(3 * time.Minute)
	for !c.reaches(n) || len(daemons(daemon)) < n {
		if time.Now().After(deadline) {
			said, _ := os.ReadFile(out.Name())
			return "", "", fmt.Errorf("only %d of %d services run; it said: %.500s", len(daemons(daemon)), n, said)
		}
		time.Sleep(5 * time.Millisecond)
	}
	started := c.looked.Sub(begin)
	spent := usage(daemon).cpu + cpuOf(daemons(daemon))
	time.Sleep(2 * time.Second) // what is left of the start
	before := usage(daemon)
	time.Sleep(idle)
	after := usage(daemon)
	latencies, err := killAndWait(daemon, kills)
	if err != nil {
		return "", "", err
	}
	slices.Sort(latencies)
	if s.requests != nil {
		if api, err = requests(s, dir, cmd.Process.Pid, n, 20); err != nil {
			return "", "", err
		}
	}
	at := func(q float64) string {
		d := latencies[min(int(q*float64(len(latencies))), len(latencies)-1)]
		return fmt.Sprintf("%.2f ms", ms(d))
	}
	return fmt.Sprintf("| %s | %d | %d | %.2f s | %.2f s | %.1f MB | %.1f MB | %.2f %% | %s | %s | %s | %d |",
		s.name, n, after.processes, started.Seconds(), spent.Seconds(), mb(after.rss), mb(after.pss),
		100*(after.cpu-before.cpu).Seconds()/idle.Seconds(), at(0.5), at(0.9), at(1), len(latencies)), api, nil
}

func mb(kib int) float64 { return float64(kib) / 1024 }

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// killAndWait kills one daemon after the other and takes the time until the
// kernel opens the daemon's file to execute it once more.
func killAndWait(daemon string, kills int) ([]time.Duration, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, daemon, unix.IN_OPEN); err != nil {
		return nil, err
	}
	var out []time.Duration
	buf := make([]byte, 4096)
	for i := range kills {
		time.Sleep(upFor)
		drain(fd, buf)
		pids := daemons(daemon)
		if len(pids) == 0 {
			return nil, errors.New("no daemon is left to kill")
		}
		slices.Sort(pids)
		pid := pids[(i*7)%len(pids)]
		begin := time.Now()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return nil, err
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := pollFor(poll, 30*time.Second); err != nil || n == 0 {
			return nil, fmt.Errorf("process %d was killed and had no successor within 30 s (%v)", pid, err)
		}
		out = append(out, time.Since(begin))
	}
	return out, nil
}

func pollFor(p []unix.PollFd, d time.Duration) (int, error) {
	end := time.Now().Add(d)
	for {
		n, err := unix.Poll(p, int(time.Until(end).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func drain(fd int, buf []byte) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if n <= 0 || err != nil {
			return
		}
		_, _ = unix.Read(fd, buf)
	}
}

// pidsBelow lists this process's descendants.
func pidsBelow() []int {
	children := make(map[int][]int)
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, ok := parentOf(pid); ok {
			children[parent] = append(children[parent], pid)
		}
	}
	var out []int
	queue := []int{os.Getpid()}
	for len(queue) > 0 {
		next := children[queue[0]]
		out, queue = append(out, next...), append(queue[1:], next...)
	}
	return out
}

func parentOf(pid int) (int, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 2 || fields[0] == "Z" {
		return 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return parent, err == nil
}

// daemons are the descendants that execute the file.
func daemons(file string) []int {
	return slices.DeleteFunc(pidsBelow(), func(pid int) bool { return !executes(pid, file) })
}

func executes(pid int, file string) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && exe == file
}

type used struct {
	processes, rss, pss int // KiB
	cpu                 time.Duration
}

// usage adds up the supervisor's own processes.
func usage(daemon string) used {
	var u used
	for _, pid := range pidsBelow() {
		if executes(pid, daemon) {
			continue
		}
		u.processes++
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) < 2 {
				continue
			}
			n, _ := strconv.Atoi(f[1])
			switch f[0] {
			case "Rss:":
				u.rss += n
			case "Pss:":
				u.pss += n
			}
		}
		data, _ = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if len(f) > 12 {
			user, _ := strconv.Atoi(f[11])
			system, _ := strconv.Atoi(f[12])
			u.cpu += time.Duration(user+system) * time.Second / 100
		}
	}
	return u
}

// killAll ends every descendant, also those that come while it does, and removes
// their cgroups.
func killAll() {
	defer removeTree(ownCgroup())
	for range 50 {
		pids := pidsBelow()
		if len(pids) == 0 {
			break
		}
		// First those that would start others.
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}
