package mounts

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// image shows an image's files on the source, unless something is mounted there.
// They are never there but read-only: they are those of everybody who uses the
// image.
func image(m *service.Mount) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.Source, 0, 0, &st); err != nil {
		return err
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 || len(m.Image.Layers) == 0 {
		return nil
	}
	var err error
	if len(m.Image.Layers) == 1 {
		err = only(m.Image.Layers[0], m.Source)
	} else {
		err = Overlay{Layers: m.Image.Layers}.Mount(m.Source)
	}
	if err != nil {
		return fmt.Errorf("show the files of image %s: %w", m.Image.ID, err)
	}
	return nil
}

// only shows a directory at another one, read-only from the first moment.
func only(source, target string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: data | unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// data is what holds of files that are no programs.
const data = unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// Overlay are directories one over the other. Without Upper, a writable one over
// all, they are read-only and hold no programs.
type Overlay struct {
	// Layers are lowest first.
	Layers []string
	// Upper needs Work, an empty directory beside it.
	Upper, Work string
}

// longest is how much text mount(2) takes as options.
const longest = 4096

// Mount mounts it on a directory.
func (o Overlay) Mount(target string) error {
	lower := slices.Clone(o.Layers)
	slices.Reverse(lower)
	options, flags := "lowerdir=", uintptr(0)
	for i, dir := range lower {
		if i > 0 {
			options += ":"
		}
		options += dir
	}
	if o.Upper != "" {
		options += ",upperdir=" + o.Upper + ",workdir=" + o.Work
	} else {
		flags = unix.MS_RDONLY | unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
	}
	if len(options) >= longest {
		if err := o.mountMany(lower, target); err != nil {
			return fmt.Errorf("mount the image's %d layers (so many need Linux 6.7): %w", len(lower), err)
		}
		return nil
	}
	if err := unix.Mount("legion", target, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount the image's layers: %w", err)
	}
	return nil
}

// mountMany mounts it by the calls that take its layers one by one.
func (o Overlay) mountMany(lower []string, target string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set := func(key, value string) {
		if err == nil {
			err = unix.FsconfigSetString(fd, key, value)
		}
	}
	for _, dir := range lower {
		set("lowerdir+", dir)
	}
	attributes := data | unix.MOUNT_ATTR_RDONLY
	if o.Upper != "" {
		attributes = 0
		set("upperdir", o.Upper)
		set("workdir", o.Work)
	}
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	mounted, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return err
	}
	defer unix.Close(mounted)
	return unix.MoveMount(mounted, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
