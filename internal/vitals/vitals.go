// Package vitals tells what this process itself uses, in Prometheus' text format
// (version 0.0.4) and under the names that Prometheus' own clients give it.
package vitals

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Text gives goroutines, open files and resident memory. What /proc does not
// tell is left out.
func Text() string {
	var b strings.Builder
	gauge := func(name, help string, value int64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %[1]s gauge\n%[1]s %[3]d\n", name, help, value)
	}
	gauge("go_goroutines", "Goroutines that exist now.", int64(runtime.NumGoroutine()))
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil {
		// Less the one by which the directory was read.
		gauge("process_open_fds", "Open file descriptors.", int64(len(entries)-1))
	}
	if data, err := os.ReadFile("/proc/self/statm"); err == nil {
		// size resident … in pages (proc(5))
		if fields := bytes.Fields(data); len(fields) > 1 {
			if pages, err := strconv.ParseInt(string(fields[1]), 10, 64); err == nil {
				gauge("process_resident_memory_bytes", "Resident memory.", pages*int64(os.Getpagesize()))
			}
		}
	}
	return b.String()
}
