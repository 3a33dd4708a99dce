package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// MappedUsers makes a user namespace whose users and groups from 0 on are the
// host's from first on, size of each. It is there while the file is open, or
// somebody is in it.
func MappedUsers(first, size int) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	all := []syscall.SysProcIDMap{{HostID: first, Size: size}}
	c := exec.Command("/proc/self/exe")
	c.Args = []string{Argv0}
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all}
	c.ExtraFiles = []*os.File{r} // where it waits for a Spec, until it finds that none comes
	err = c.Start()
	_ = r.Close()
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer func() {
		_ = w.Close()
		_ = c.Wait() // who collects orphans may have been there first
	}()
	return os.Open("/proc/" + strconv.Itoa(c.Process.Pid) + "/ns/user")
}
