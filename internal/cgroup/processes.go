package cgroup

import (
	"os"
	"strconv"

	"legion.dev/legion/internal/procstat"
)

// process is what /proc tells of one.
type process struct {
	pid, parent, group, session int
	ticks                       int
	zombie                      bool
	// memory: it has any, unlike those of the kernel.
	memory bool
}

// looks bounds how often all processes are looked at where some always end
// meanwhile.
const looks = 4

// processes looks at all processes there are.
func processes() map[int]process { return settled(list, readProcess) }

// settled lists the processes and looks at each once. It lists them again where
// one has ended in between: it may have left a child behind, which was not listed.
func settled(list func() []int, read func(pid int) (process, bool)) map[int]process {
	there, over := make(map[int]process), make(map[int]bool)
	for n, again := 0, true; again && n < looks; n++ {
		again = false
		for _, pid := range list() {
			if _, known := there[pid]; known || over[pid] {
				continue
			}
			p, ok := read(pid)
			if ok {
				there[pid] = p
			}
			if !ok || p.zombie {
				over[pid], again = true, true
			}
		}
	}
	return there
}

func list() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func readProcess(pid int) (process, bool) {
	s, err := procstat.Read(pid)
	if err != nil {
		return process{}, false
	}
	return process{
		pid: pid, parent: s.Number(procstat.Parent), group: s.Number(procstat.Group), session: s.Number(procstat.Session),
		ticks: s.Number(procstat.StartTime), zombie: s.Over(), memory: s.Number(procstat.Size) != 0,
	}, true
}
