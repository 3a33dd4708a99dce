package bundle

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountMany mounts an overlay by the calls that take its layers one by one:
// mount(2) takes no more than a page of them.
func mountMany(bundle string, lower []string) error {
	fail := func(err error) error {
		return fmt.Errorf("mount the image's %d layers (so many need Linux 6.7): %w", len(lower), err)
	}
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(fd)
	for _, dir := range lower {
		err = errors.Join(err, unix.FsconfigSetString(fd, "lowerdir+", dir))
	}
	err = errors.Join(err,
		unix.FsconfigSetString(fd, "upperdir", filepath.Join(bundle, "upper")),
		unix.FsconfigSetString(fd, "workdir", filepath.Join(bundle, "work")))
	if err != nil {
		return fail(err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fail(err)
	}
	mounted, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(mounted)
	if err := unix.MoveMount(mounted, "", unix.AT_FDCWD, filepath.Join(bundle, Root), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fail(err)
	}
	return nil
}
