package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mount shows Source (below it SubPath) at Target; see service.Mount.
type Mount struct {
	Source      string `json:"source"`
	SubPath     string `json:"subPath,omitempty"`
	Target      string `json:"target"`
	ReadOnly    bool   `json:"readOnly,omitempty"`
	Recursive   bool   `json:"recursive,omitempty"`
	Propagation string `json:"propagation,omitempty"`
	// Data are no programs: nothing of it can be executed.
	Data bool `json:"data,omitempty"`
}

// mountStages make the mount namespace. What is to be shown is taken hold of
// first, in the host's view; then the root becomes read-only, if it shall; then
// each is put in its place, outer ones before what they hold.
func (s *Spec) mountStages() []stage {
	mounts := s.Mounts
	if s.ReadOnlyRoot {
		mounts = append([]Mount{
			{Source: "/proc", Target: "/proc", Propagation: "slave"}, {Source: "/dev", Target: "/dev", Propagation: "slave"},
		}, mounts...)
	}
	trees := make([]int, len(mounts))
	stages := []stage{{"make a mount namespace", CodeNamespace, func() error {
		err := unix.Unshare(unix.CLONE_NEWNS)
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: only root may mount; run legiond as root", err)
		}
		return err
	}}}
	for i, m := range mounts {
		stages = append(stages, stage{fmt.Sprintf("take hold of %q for %q", filepath.Join(m.Source, m.SubPath), m.Target), CodeNamespace, func() (err error) {
			trees[i], err = m.open()
			return err
		}})
	}
	stages = append(stages, stage{"keep the mounts from the host", CodeNamespace, func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil || !s.ReadOnlyRoot {
			return err
		}
		return unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}})
	for i, m := range mounts {
		stages = append(stages, stage{fmt.Sprintf("mount %q on %q", filepath.Join(m.Source, m.SubPath), m.Target), CodeNamespace, func() error {
			defer unix.Close(trees[i])
			return m.attach(trees[i], s.Root)
		}})
	}
	return stages
}

// open takes hold of a copy of the tree.
func (m *Mount) open() (int, error) {
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE
	if m.SubPath == "" {
		return unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	}
	source, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(source)
	sub, err := unix.Openat2(source, m.SubPath, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.EXDEV) {
		return -1, fmt.Errorf("%w: it leads out of the volume", err)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(sub)
	return unix.OpenTree(sub, "", flags|unix.AT_EMPTY_PATH)
}

// attach puts the tree in its place.
func (m *Mount) attach(tree int, root string) error {
	attr := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	switch m.Propagation {
	case "slave":
		attr.Propagation = unix.MS_SLAVE
	case "shared":
		attr.Propagation = unix.MS_SHARED
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("set propagation: %w", err)
	}
	if m.ReadOnly {
		flags := uint(unix.AT_EMPTY_PATH)
		if m.Recursive {
			flags |= unix.AT_RECURSIVE
		}
		if err := unix.MountSetattr(tree, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make it read-only: %w", err)
		}
	}
	if m.Data {
		const flags = unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: flags}); err != nil {
			return fmt.Errorf("make it data: %w", err)
		}
	}
	if root == "" {
		root = "/"
	}
	top, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	target, err := unix.Openat2(top, m.Target, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
