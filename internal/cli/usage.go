package cli

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/procstat"
	"legion.dev/legion/internal/service"
)

// usage is what a service uses of the machine.
type usage struct {
	cpu    time.Duration
	memory uint64 // bytes
	tasks  int
}

func (u *usage) add(o usage) {
	u.cpu += o.cpu
	u.memory += o.memory
	u.tasks += o.tasks
}

// clockTick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every
// architecture that Go knows.
const clockTick = 10 * time.Millisecond

// usageOf asks the cgroup of the service where its controllers count, else
// /proc for each of its processes.
func usageOf(st service.Status) usage {
	if !st.State.Alive() {
		return usage{}
	}
	var pids []int
	if st.Cgroup != "" {
		pids = members(st.Cgroup)
	} else if st.Main != nil && st.Main.Exit == nil && st.Main.PID > 0 {
		pids = descendants(st.Main.PID)
	}
	var u usage
	for _, pid := range pids {
		u.add(processUsage(pid))
	}
	if n, ok := number(filepath.Join(st.Cgroup, "memory.current")); ok && st.Cgroup != "" {
		u.memory = n
	}
	if st.Cgroup != "" {
		// cpu.stat also counts what has ended.
		if n, ok := field(filepath.Join(st.Cgroup, "cpu.stat"), "usage_usec"); ok {
			u.cpu = time.Duration(n) * time.Microsecond
		}
	}
	return u
}

// processUsage is what a process uses; one that has ended uses nothing.
func processUsage(pid int) usage {
	s, err := procstat.Read(pid)
	if err != nil {
		return usage{}
	}
	return usage{
		cpu:    time.Duration(s.Number(procstat.UserTime)+s.Number(procstat.SystemTime)) * clockTick,
		tasks:  s.Number(procstat.Threads),
		memory: uint64(s.Number(procstat.Resident)) * uint64(os.Getpagesize()),
	}
}

func number(path string) (uint64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil
}

// field reads one line "name value" of a file.
func field(path, name string) (uint64, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for _, l := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(l, name+" "); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(rest), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// bytesText is a size as systemd prints it: 1.5M.
func bytesText(n uint64) string {
	units := []string{"B", "K", "M", "G", "T"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return strconv.FormatUint(n, 10) + "B"
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + units[i]
}
