package cgroup

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/procstat"
)

// Usage is what processes use.
type Usage struct {
	// CPU is the processor time since the beginning.
	CPU time.Duration
	// Memory is the working set in bytes.
	Memory int64
}

// UsageOf reads what the cgroup in dir uses, with all below it. Where the memory
// controller does not count, its memory is that of its processes, what several
// share divided among them.
func UsageOf(dir string) (Usage, error) {
	var u Usage
	micros, err := number(filepath.Join(dir, "cpu.stat"), "usage_usec ")
	if err != nil {
		return u, err
	}
	u.CPU = time.Duration(micros) * time.Microsecond
	if current, err := number(filepath.Join(dir, "memory.current"), ""); err == nil {
		// The kubelet's working set: what could be had back at once is left out.
		inactive, _ := number(filepath.Join(dir, "memory.stat"), "inactive_file ")
		u.Memory = max(0, current-inactive)
		return u, nil
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return ignoreGone(err)
		}
		data, err := os.ReadFile(path)
		for _, pid := range strings.Fields(string(data)) {
			u.Memory += memoryOf(pid)
		}
		return ignoreGone(err)
	})
	return u, err
}

// UsageOfProcess is UsageOf for one process, where there are no cgroups.
func UsageOfProcess(pid int) (Usage, error) {
	s, err := procstat.Read(pid)
	if err != nil {
		return Usage{}, err
	}
	ticks := s.Number(procstat.UserTime) + s.Number(procstat.SystemTime)
	return Usage{CPU: time.Duration(ticks) * Tick, Memory: memoryOf(strconv.Itoa(pid))}, nil
}

// Tick is the unit of times in /proc: USER_HZ is 100 on all of Linux's machines.
const Tick = 10 * time.Millisecond

// memoryOf is a process's share of the memory that it has mapped, or all of it
// where its share may not be read; 0 if it is gone.
func memoryOf(pid string) int64 {
	if kilobytes, err := number("/proc/"+pid+"/smaps_rollup", "Pss:"); err == nil {
		return kilobytes << 10
	}
	data, err := os.ReadFile("/proc/" + pid + "/statm")
	fields := strings.Fields(string(data))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// number reads the number behind a word at the beginning of a line.
func number(path, word string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), word); ok {
			if words := strings.Fields(rest); len(words) > 0 {
				return strconv.ParseInt(words[0], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("%s has no line %q", path, word)
}
