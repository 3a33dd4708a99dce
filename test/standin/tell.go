package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// tell prints how the process was started, a fact a line.
func tell() error {
	for i, arg := range os.Args {
		fmt.Printf("arg %d %s\n", i, arg)
	}
	for _, one := range os.Environ() {
		fmt.Printf("env %q\n", one)
	}
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	slices.Sort(groups)
	dir, _ := os.Getwd()
	host, _ := os.Hostname()
	fmt.Printf("uid %d\ngid %d\ngroups %v\ndir %s\nhostname %s\npid %d\n", os.Getuid(), os.Getgid(), groups, dir, host, os.Getpid())
	for _, kind := range []string{"ipc", "mnt", "net", "pid", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return err
		}
		fmt.Println("namespace", link)
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	fmt.Printf("oom_score_adj %s", score)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		for _, name := range []string{"Cap", "NoNewPrivs:", "Seccomp:"} {
			if strings.HasPrefix(line, name) {
				fmt.Println(strings.Join(strings.Fields(line), " "))
			}
		}
	}
	fmt.Println("told")
	return nil
}

func cat(path string) error {
	text, err := os.ReadFile(path)
	if err == nil {
		fmt.Printf("%s\n", text)
	}
	return err
}

func absent(path string) error {
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("%s is there", path)
	}
	return nil
}

// look says what is at a path, of a short file also its text, and what is
// mounted there.
func look(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Println(path, "is not there")
		return nil
	}
	if err != nil {
		fmt.Println(path, err)
		return nil
	}
	st := info.Sys().(*syscall.Stat_t)
	kind, text := "file", ""
	switch {
	case info.IsDir():
		kind = "directory"
	case info.Mode()&fs.ModeCharDevice != 0:
		kind = "device"
	case info.Mode()&fs.ModeSocket != 0:
		kind = "socket"
	case info.Mode().IsRegular():
		data, err := os.ReadFile(path)
		if text = fmt.Sprintf(" %q", data); err != nil {
			text = " " + err.Error()
		}
	}
	fmt.Printf("%s %s %04o %d:%d%s\n", path, kind, st.Mode&0o7777, st.Uid, st.Gid, text)
	return mounted(path)
}

// mounted says what is mounted at a path, what last came first.
func mounted(path string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(table)), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		before, after, _ := strings.Cut(line, " - ")
		own, system := strings.Fields(before), strings.Fields(after)
		if own[4] == path {
			write, _, _ := strings.Cut(own[5], ",")
			fmt.Println("mount", path, system[0], write, strings.Join(own[6:], " "))
			return nil
		}
	}
	return nil
}

// touch tries to make a file, which it removes again, or to write to one.
func touch(path string) error {
	_, before := os.Stat(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Println("touch", err)
		return nil
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	fmt.Printf("touch %s %d:%d\n", path, st.Uid, st.Gid)
	if before != nil {
		return os.Remove(path)
	}
	return nil
}

// calls are system calls that need a capability or that filters refuse.
var calls = map[string]func() error{
	"keyctl":  func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err },
	"mount":   func() error { return unix.Mount("none", "/no/such/place", "tmpfs", 0, "") },
	"unshare": func() error { return unix.Unshare(unix.CLONE_NEWUTS) },
	"userns":  func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	"setuid":  func() error { return syscall.Setuid(os.Getuid() + 1) },
	"raw": func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	},
}

func call(name string) error {
	do := calls[name]
	if do == nil {
		return fmt.Errorf("%q is no call", name)
	}
	fmt.Println("call", name, do())
	return nil
}

// await waits until there is something at a path.
func await(path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return err
	}
	for buf := make([]byte, 4096); ; {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// watch prints the text of the files of a volume, all of one version, whenever
// there is another.
func watch(dir string, names []string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for last := ""; ; {
		// The link is followed once: it may come to lead elsewhere meanwhile.
		version, err := filepath.EvalSymlinks(filepath.Join(dir, "..data"))
		if err != nil {
			return err
		}
		line := "files"
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join(version, name))
			if err != nil {
				line = "" // it was taken away: there is another
				break
			}
			line += fmt.Sprintf(" %s=%s", name, text)
		}
		if line != "" && line != last {
			fmt.Println(line)
			last = line
		}
		if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
