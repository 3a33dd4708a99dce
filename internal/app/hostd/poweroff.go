package hostd

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/service"
)

// place says what legiond is to the machine.
func place() host.Place {
	ns, err := os.Readlink("/proc/self/ns/pid")
	switch {
	case os.Getpid() != 1 || err != nil:
		return ""
	case ns == initialPIDNamespace:
		return host.OfMachine
	}
	return host.OfContainer
}

// endMachine ends the machine where legiond is its PID 1, by turning it off
// unless something else was asked for. In a container, PID 1 only exits; for a
// reboot it ends in the way by which the kernel lets who has made the container
// know (reboot(2), PID namespaces).
func endMachine(e host.Ending, log *slog.Logger) {
	switch place() {
	case "":
		return
	case host.OfContainer:
		if e.Kind() != service.Reboot {
			return
		}
		log.Info("asking for the reboot of the container")
	default:
		if !e.Immediate() {
			endProcesses()
			unix.Sync()
			for _, m := range []string{"/", "/var", "/home"} {
				_ = unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
			}
		}
		log.Info("the machine ends", "action", e.Kind())
	}
	if err := reboot(e); err != nil {
		log.Error("cannot end the machine in this way", "action", e.Kind(), "error", err)
	}
}

// reboot makes the system call of that name.
func reboot(e host.Ending) error {
	switch e.Kind() {
	case service.Reboot:
		if e.Argument != "" {
			return rebootWith(e.Argument)
		}
		return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case service.Halt:
		return unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// rebootWith gives an argument to the firmware or the driver that restarts the
// machine.
func rebootWith(argument string) error {
	text, err := unix.BytePtrFromString(argument)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall6(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_RESTART2, uintptr(unsafe.Pointer(text)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// endProcesses asks every process of the machine to end, and kills those that do
// not within five seconds.
func endProcesses() {
	gone := make(chan os.Signal, 16)
	signal.Notify(gone, syscall.SIGCHLD)
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		_ = unix.Kill(-1, s)
		for end := time.After(5 * time.Second); ; {
			var status unix.WaitStatus
			_, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if errors.Is(err, unix.ECHILD) {
				break
			}
			select {
			case <-gone:
				continue
			case <-time.After(50 * time.Millisecond):
				continue
			case <-end:
			}
			break
		}
	}
}
