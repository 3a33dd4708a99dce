package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// mostPIDFile is how much of a PID file is read, in bytes.
const mostPIDFile = 4096

// readPIDFile returns the process that the first line of a PID file names, and
// the user whose file it is. The file is the daemon's to write, or to make into
// something else.
func readPIDFile(path string) (pid int, by uint32, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("no main process yet: %w", err)
	}
	defer file.Close()
	st, err := regular(file)
	if err != nil {
		return 0, 0, fmt.Errorf("the PID file %s: %w", path, err)
	}
	line, err := bufio.NewReader(io.LimitReader(file, mostPIDFile)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, fmt.Errorf("no main process yet: %w", err)
	}
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return 0, 0, fmt.Errorf("%s does not hold a process ID", path)
	}
	return pid, st.Sys().(*syscall.Stat_t).Uid, nil
}

// userOf is who a process runs as; 0 for one that is gone, which nobody takes
// for another.
func userOf(pid int) uint32 {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid), &st) != nil {
		return 0
	}
	return st.Uid
}

// mayName says whether the user may say of a process that is not known to be the
// service's that it is (where no cgroup tells): the superuser of any, others of
// their own.
func mayName(by uint32, pid int) bool { return by == 0 || by == userOf(pid) }
