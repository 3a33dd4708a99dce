package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// counter finds out when enough processes execute a file. It measures beside the
// supervisor, on the same processors, so it looks as little as it can: not
// before the machine has so many tasks more, and at each process only until it
// is one of those.
type counter struct {
	file  string
	there map[int]bool
	// others is how many tasks the machine had before; looked is when it was
	// last looked closely.
	others int
	looked time.Time
}

// atLeastEvery bounds how long it is not looked closely: other tasks of the
// machine may end meanwhile.
const atLeastEvery = 200 * time.Millisecond

func (c *counter) reaches(n int) bool {
	if tasks() < c.others+n && time.Since(c.looked) < atLeastEvery {
		return false
	}
	c.looked = time.Now()
	dir, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err == nil && !c.there[pid] && executes(pid, c.file) {
			c.there[pid] = true
		}
	}
	return len(c.there) >= n
}

// tasks is how many the machine has, threads of the kernel's included
// (/proc/loadavg in proc(5)).
func tasks() int {
	data, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(data))
	if len(fields) < 4 {
		return 0
	}
	_, all, _ := strings.Cut(fields[3], "/")
	n, _ := strconv.Atoi(all)
	return n
}

// cpuOf adds up what processes of one thread each have used of the processors
// (/proc/PID/schedstat: nanoseconds).
func cpuOf(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		ns, _, _ := strings.Cut(string(data), " ")
		n, _ := strconv.ParseInt(ns, 10, 64)
		sum += time.Duration(n)
	}
	return sum
}
