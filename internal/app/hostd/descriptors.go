package hostd

import "golang.org/x/sys/unix"

// descriptors is for how many legiond makes room: it has three for each service.
const descriptors = 4096

// roomForDescriptors makes the kernel's table of them large at once. Else it
// doubles it when it is full, and every thread that opens a file meanwhile waits
// until all processors have come by (expand_files in Linux's fs/file.c): some ten
// milliseconds each time, in the middle of a boot.
func roomForDescriptors() {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// Where so many are not allowed, the table stays as it is.
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, descriptors-1); err == nil {
		unix.Close(high)
	}
}
