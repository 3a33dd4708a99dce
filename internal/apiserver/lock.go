package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lock keeps a second server out of the directory: it would open the same store.
// The kernel gives the lock back when the process ends, however it ends.
func lock(path string) (func(), error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the server's directory: %w", err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := os.ReadFile(path)
		_ = file.Close()
		return nil, fmt.Errorf("cannot start a server in %s: another one already runs there (pid %s); stop it first, or choose another --dir",
			filepath.Dir(filepath.Dir(path)), strings.TrimSpace(string(holder)))
	}
	if err == nil {
		err = errors.Join(file.Truncate(0), writePID(file))
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("cannot lock the server's directory: %w", err)
	}
	return func() { _ = file.Close() }, nil
}

func writePID(file *os.File) error {
	_, err := fmt.Fprintln(file, os.Getpid())
	return err
}
