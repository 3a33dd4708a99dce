package sandbox

import (
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities in the order of their numbers (capabilities(7)).
var capabilities = strings.Fields(`
	CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK
	IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
	SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
	AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
	BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// Capability gives the number of a capability by name, with or without "CAP_".
func Capability(name string) (uintptr, error) {
	short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
	for i, c := range capabilities {
		if c == short {
			return uintptr(i), nil
		}
	}
	return 0, fmt.Errorf("capability %q: no such capability (see capabilities(7))", name)
}

// The three setters below call the kernel for this thread only, which is the
// one that executes the daemon; the other threads of the Go runtime end there.

func setGroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	return errno(syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0))
}

func setGID(gid uint32) error {
	g := uintptr(gid)
	return errno(syscall.RawSyscall(unix.SYS_SETRESGID, g, g, g))
}

func setUID(uid uint32, keepCapabilities bool) error {
	if keepCapabilities {
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return err
		}
	}
	u := uintptr(uid)
	return errno(syscall.RawSyscall(unix.SYS_SETRESUID, u, u, u))
}

func errno(_, _ uintptr, e syscall.Errno) error {
	if e != 0 {
		return e
	}
	return nil
}

// bound drops every capability that is not in keep from the bounding set.
func bound(keep []string) error {
	kept := make(map[uintptr]bool, len(keep))
	for _, name := range keep {
		c, err := Capability(name)
		if err != nil {
			return err
		}
		kept[c] = true
	}
	for c := range uintptr(64) {
		if kept[c] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			if err == unix.EINVAL {
				return nil // past the last one that the kernel knows
			}
			return err
		}
	}
	return nil
}

// ambient gives capabilities that survive exec without being root.
func ambient(names []string) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, name := range names {
		c, err := Capability(name)
		if err != nil {
			return err
		}
		data[c/32].Permitted |= 1 << (c % 32)
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Inheritable |= 1 << (c % 32)
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return err
	}
	for _, name := range names {
		c, _ := Capability(name)
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return err
		}
	}
	return nil
}
