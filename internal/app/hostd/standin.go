package hostd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// standIn makes what programs look for to tell that systemd runs the machine
// (sd_booted(3)): /run/systemd/system, and the manager's notify socket. undo
// takes it away again. run is "/run" but in tests.
func standIn(run, notifySocket string) (undo func(), err error) {
	if comm, err := os.ReadFile("/proc/1/comm"); err == nil && strings.TrimSpace(string(comm)) == "systemd" && os.Getpid() != 1 {
		return nil, errors.New("cannot stand in for systemd: it runs this machine (it is PID 1); leave --stand-in out")
	}
	base := filepath.Join(run, "systemd")
	if err := os.MkdirAll(filepath.Join(base, "system"), 0o755); err != nil {
		return nil, fmt.Errorf("cannot stand in for systemd: %w", err)
	}
	link, temporary := filepath.Join(base, "notify"), filepath.Join(base, ".notify.legion")
	_ = os.Remove(temporary) // of a legiond that was killed at this point
	if err = os.Symlink(notifySocket, temporary); err == nil {
		err = os.Rename(temporary, link)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot stand in for systemd: %w", err)
	}
	return func() {
		if to, err := os.Readlink(link); err == nil && to == notifySocket {
			_ = os.Remove(link)
		}
		// Only if nobody has put units there.
		_ = os.Remove(filepath.Join(base, "system"))
		_ = os.Remove(base)
	}, nil
}
