package hostd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/service"
)

// What legiond does as PID 1 of a machine or a container, beside what it always
// does.

// apiMount is a file system that programs count on.
type apiMount struct {
	path, kind, options string
	flags               uintptr
	mode                os.FileMode
}

var apiMounts = []apiMount{
	{"/proc", "proc", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, 0o555},
	{"/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, 0o555},
	{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID, 0o755},
	{"/dev/pts", "devpts", "mode=0620,gid=5,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC, 0o755},
	{"/dev/shm", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV, 0o1777},
	{"/run", "tmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV, 0o755},
	{"/sys/fs/cgroup", "cgroup2", "nsdelegate", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, 0o755},
}

// mountMissing mounts those that are not there. What the machine does not allow
// is said, and left out: containers come with most of them.
func mountMissing(log *slog.Logger) {
	for _, m := range apiMounts {
		if m.there() {
			continue
		}
		err := os.MkdirAll(m.path, m.mode)
		if err == nil || errors.Is(err, unix.EROFS) {
			err = unix.Mount(m.kind, m.path, m.kind, m.flags, m.options)
		}
		if err != nil {
			log.Warn("cannot mount a file system that programs count on", "path", m.path, "type", m.kind, "error", err)
		}
	}
	// Debian's /var/lock; hier(7).
	if os.Mkdir("/run/lock", 0o755) == nil {
		_ = os.Chmod("/run/lock", 0o777|os.ModeSticky)
	}
}

// there says whether the file system, or one that does its work, is mounted.
func (m apiMount) there() bool {
	switch m.path {
	case "/proc":
		// One of another PID namespace has no entry for this process.
		self, err := os.Readlink("/proc/self")
		return err == nil && self == strconv.Itoa(os.Getpid())
	case "/dev":
		_, err := os.Stat("/dev/null")
		return err == nil
	}
	var a, b unix.Stat_t
	if unix.Stat(m.path, &a) != nil || unix.Stat(m.path+"/..", &b) != nil {
		return false
	}
	return a.Dev != b.Dev
}

// temporaryFiles makes what packages want to find after a boot, most of it below
// /run (tmpfiles.d(5)), where systemd's program for that is installed. Nothing is
// removed; nor are lines for the boot alone carried out: one of them keeps users
// out until a part of systemd lets them in (pam_nologin(8)).
func temporaryFiles(procs *runner.Runner, log *slog.Logger) {
	const path = "/usr/bin/systemd-tmpfiles"
	if unix.Access(path, unix.X_OK) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), generatorTime)
	defer cancel()
	exit, said, err := procs.Output(ctx, runner.Request{
		Group: "legiond", Command: service.Command{Path: path, Argv: []string{path, "--create", "--exclude-prefix=/dev"}}, Context: &service.ExecContext{},
	}, 4096)
	if err != nil || exit.Code != 0 || exit.Signal != 0 {
		log.Warn("not all files that packages want at boot are there", "program", path, "status", exit.Code, "error", err, "said", strings.TrimSpace(string(said)))
	}
}

// writable gives the directory for state: dir, or with a root that cannot be
// written to, one in memory.
func writable(dir, memory string) (string, error) {
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = unix.Access(dir, unix.W_OK)
	}
	if err == nil {
		return dir, nil
	}
	if os.Getpid() != 1 || !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return "", fmt.Errorf("cannot make legiond's directory: %w", err)
	}
	if e := os.MkdirAll(memory, 0o755); e != nil {
		return "", fmt.Errorf("cannot make legiond's directory: %w; nor %s in its place: %w", err, memory, e)
	}
	return memory, nil
}

// Exit is the error of Run where legiond is to end with a certain status: that
// of the essential service.
type Exit struct {
	Code   int
	Reason string
}

func (e Exit) Error() string { return e.Reason }

// initialPIDNamespace is the inode of the PID namespace of a machine's own PID 1
// (<linux/proc_ns.h>, PROC_PID_INIT_INO).
const initialPIDNamespace = "pid:[4026531836]"
