package mounts

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Idmapped shows a file or directory at another one as a user namespace sees it
// whose numbers are those of the disk: who is root in it owns what is root's
// there, and what it makes is root's on the disk (mount_setattr(2)).
func Idmapped(source, target string, users *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("its file system cannot be shown to the pod's own users: %w", err)
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
