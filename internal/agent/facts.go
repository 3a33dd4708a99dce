package agent

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// facts are what the machine says of itself.
type facts struct {
	Kernel, OSImage, BootID, MachineID string
	CPUs                               int
	// MemoryTotal and MemoryAvailable are bytes.
	MemoryTotal, MemoryAvailable int64
	// Disk is of the file system that holds the agent's directory, in bytes;
	// Inodes likewise. A file system without inode counts has 0 Inodes.
	DiskTotal, DiskAvailable   int64
	Inodes, InodesFree         int64
	Processes, ProcessesAtMost int64
}

// readFacts reads them anew; proc is /proc, dir the agent's directory.
func readFacts(proc, dir string) (facts, error) {
	f := facts{CPUs: runtime.NumCPU()}
	var err error
	if f.MemoryTotal, f.MemoryAvailable, err = readMemory(filepath.Join(proc, "meminfo")); err != nil {
		return f, err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return f, fmt.Errorf("cannot read the size of the file system of %s: %w", dir, err)
	}
	size := int64(disk.Bsize)
	f.DiskTotal, f.DiskAvailable = int64(disk.Blocks)*size, int64(disk.Bavail)*size
	f.Inodes, f.InodesFree = int64(disk.Files), int64(disk.Ffree)

	f.Processes = readProcesses(filepath.Join(proc, "loadavg"))
	f.ProcessesAtMost = least(readNumber(filepath.Join(proc, "sys/kernel/pid_max")), readNumber(filepath.Join(proc, "sys/kernel/threads-max")))

	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		f.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	f.BootID = readLine(filepath.Join(proc, "sys/kernel/random/boot_id"))
	f.MachineID = cmp.Or(readLine("/etc/machine-id"), readLine("/var/lib/dbus/machine-id"))
	f.OSImage = cmp.Or(osImage("/etc/os-release"), osImage("/usr/lib/os-release"), "Linux")
	return f, nil
}

func readMemory(path string) (total, available int64, err error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the size of the memory: %w", err)
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(words[1], 10, 64)
		switch words[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("cannot read the size of the memory: %s has no line MemTotal", path)
	}
	return total, available, nil
}

// readProcesses is the number of scheduling entities: proc(5), /proc/loadavg.
func readProcesses(path string) int64 {
	words := strings.Fields(readLine(path))
	if len(words) < 4 {
		return 0
	}
	_, all, _ := strings.Cut(words[3], "/")
	n, _ := strconv.ParseInt(all, 10, 64)
	return n
}

func readNumber(path string) int64 {
	n, _ := strconv.ParseInt(readLine(path), 10, 64)
	return n
}

// least is the smaller one of two limits, of which 0 is none.
func least(a, b int64) int64 {
	if a == 0 || (b != 0 && b < a) {
		return b
	}
	return a
}

func readLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

// osImage is PRETTY_NAME of os-release(5).
func osImage(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}
