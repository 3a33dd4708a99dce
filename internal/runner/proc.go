package runner

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/procstat"
)

// StartTicks reads when a process started, in clock ticks since boot. With the
// process ID it names a process until reboot.
func StartTicks(pid int) (uint64, error) {
	s, err := procstat.Read(pid)
	if err != nil {
		return 0, err
	}
	return uint64(s.Number(procstat.StartTime)), nil
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
			if s, err := procstat.Read(child); err == nil {
				parent := s.Number(procstat.Parent)
				children[parent] = append(children[parent], child)
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
		if s, err := procstat.Read(d); err != nil || !family[s.Number(procstat.Parent)] {
			unix.Close(fd)
			continue
		}
		family[d] = true
		held = append(held, fd)
	}
	return held
}
