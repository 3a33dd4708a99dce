package runner

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// inputData is a file in memory that holds what a process is to read. It cannot
// be changed: commands of the service that read it later find the same.
func (s *stdio) inputData(data []byte) (int, error) {
	fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("make a file for its data: %w", err)
	}
	defer unix.Close(fd)
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return -1, fmt.Errorf("write its data: %w", err)
		}
		data = data[n:]
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return -1, fmt.Errorf("seal its data: %w", err)
	}
	return s.add(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY, 0)
}

// inputFile opens what StandardInput=file: names. A socket is connected to. A
// FIFO is also held open for writing: else its start would wait for a writer.
func (s *stdio) inputFile(path string) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return s.add(path, unix.O_RDWR, 0)
	case unix.S_IFSOCK:
		return s.connected(path)
	}
	return s.add(path, unix.O_RDONLY, 0)
}

func (s *stdio) connected(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	s.open = append(s.open, fd)
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	return fd, nil
}
