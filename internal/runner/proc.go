package runner

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// StartTicks reads when a process started, in clock ticks since boot: field 22
// of /proc/PID/stat. With the process ID it names a process until reboot.
func StartTicks(pid int) (uint64, error) {
	f, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return f.startTicks, nil
}

// statFields are the fields of /proc/PID/stat that Legion looks at; proc(5).
type statFields struct {
	state      byte
	parent     int
	startTicks uint64
	// exitCode is in wait(2)'s form; -1 where the kernel does not say.
	exitCode int
}

func stat(pid int) (statFields, error) {
	data, err := readSmall(procDir(pid) + "/stat")
	if err != nil {
		return statFields{}, err
	}
	// The command name may hold blanks and parentheses; the last one ends it.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return statFields{}, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	fields := bytes.Fields(data[i+1:])
	if len(fields) < 20 {
		return statFields{}, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	ticks, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return statFields{}, fmt.Errorf("/proc/%d/stat is not understood: %w", pid, err)
	}
	s := statFields{state: fields[0][0], startTicks: ticks, exitCode: -1}
	s.parent, _ = strconv.Atoi(string(fields[1]))
	if len(fields) >= 50 {
		if code, err := strconv.Atoi(string(fields[49])); err == nil {
			s.exitCode = code
		}
	}
	return s, nil
}

// readSmall reads what the kernel gives in one piece, as each start does.
func readSmall(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 1024)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return buf[:n], nil
}

func procDir(pid int) string { return "/proc/" + strconv.Itoa(pid) }

// descendants lists the processes that descend from pid, parents first.
func descendants(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, e := range entries {
		if child, err := strconv.Atoi(e.Name()); err == nil {
			if s, err := stat(child); err == nil {
				children[s.parent] = append(children[s.parent], child)
			}
		}
	}
	var out []int
	for next := []int{pid}; len(next) > 0; next = next[1:] {
		out = append(out, children[next[0]]...)
		next = append(next, children[next[0]]...)
	}
	return out
}

// holdDescendants takes hold of what descends from pid, by pidfd. A process that
// has taken the place of one meanwhile has another parent.
func holdDescendants(pid int) []int {
	var held []int
	family := map[int]bool{pid: true}
	for _, d := range descendants(pid) {
		fd, err := unix.PidfdOpen(d, 0)
		if err != nil {
			continue // it is gone
		}
		if s, err := stat(d); err != nil || !family[s.parent] {
			unix.Close(fd)
			continue
		}
		family[d] = true
		held = append(held, fd)
	}
	return held
}
