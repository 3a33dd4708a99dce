package debian

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostclient"
)

// firstID is the user of this machine that is root on one with a user namespace;
// it has no rights here.
const firstID = 100000

var idMap = []syscall.SysProcIDMap{{ContainerID: 0, HostID: firstID, Size: 65536}}

// asUser boots what has been installed on m once more, now in a user namespace:
// its PID 1 is the process of an ordinary user, and may do nothing outside. The
// files that were root's are that user's by mounts that map them.
func (m *machine) asUser(t *testing.T) *machine {
	t.Helper()
	m.end(t)                      // two overlays must not share what one of them writes
	holder := exec.Command("cat") // until its input ends
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: idMap, GidMappings: idMap}
	if err := holder.Start(); err != nil {
		t.Skipf("this machine allows no user namespace: %v", err)
	}
	defer func() { _ = in.Close(); _ = holder.Wait() }()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lower := ""
	for i, source := range []string{filepath.Join(m.base, "fs", "upper"), "/"} {
		target := filepath.Join(m.base, fmt.Sprint("lower", i))
		mapped(t, source, target, ns)
		lower += ":" + target
	}
	own := filepath.Join(m.base, "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	u := &machine{base: m.base, user: true, cmd: exec.Command("sh", "-c", mountScript)}
	u.cmd.Env = []string{"BIN=", "DEBS=", "FS=" + own, "LOWER=" + lower[1:], "OWN=,userxattr"}
	u.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWCGROUP,
		UidMappings: idMap, GidMappings: idMap, GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	u.boot(t, "legiond-user.log")
	u.pid = u.cmd.Process.Pid
	u.client = hostclient.New(u.path(stateDir + "/host.sock"))
	return u
}

// mapped mounts a directory with its files' owners as the namespace has them.
func mapped(t *testing.T, source, target string, ns *os.File) {
	t.Helper()
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}); err != nil {
		t.Skipf("the file system of %s cannot be mounted with other owners: %v", source, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}
