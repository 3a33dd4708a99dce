package console

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// receive takes the terminal that an OCI runtime has made (its option
// --console-socket): the runtime connects, and the container's first process
// sends it over the connection before it executes its program. Each file on the
// way is kept before the one before is let go.
func (c *console) receive() {
	defer close(c.received)
	if c.own.Name == Listener {
		conn, err := c.whenReadable(accept)
		if err != nil {
			return
		}
		c.next(File{Connection, conn})
	}
	terminal, err := c.whenReadable(peekFile)
	if err != nil {
		return
	}
	c.next(File{Terminal, terminal})
	c.begin()
}

// next puts a file in the place of the one that it came by.
func (c *console) next(f File) {
	c.keeper.Put(c.key, f)
	before, old := c.own, c.file
	c.take(f)
	c.keeper.Drop(c.key, before.Name)
	_ = old.Close()
	select {
	case <-c.ending:
		// The file before was told to stop.
		c.mu.Lock()
		defer c.mu.Unlock()
		_ = c.file.SetReadDeadline(past)
	default:
	}
}

// whenReadable calls from until it gives a file, waiting in between.
func (c *console) whenReadable(from func(fd int) (int, error)) (int, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	got := 0
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		for {
			got, failed = from(int(fd))
			if !errors.Is(failed, unix.EINTR) {
				return !errors.Is(failed, unix.EAGAIN)
			}
		}
	})
	return got, errors.Join(err, failed)
}

func accept(listener int) (int, error) {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	return fd, err
}

// peekFile gives the file that is sent over a connection and leaves the message
// there, for whoever may have to take this process's place.
func peekFile(conn int) (int, error) {
	data, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, rights, _, _, err := unix.Recvmsg(conn, data, oob, unix.MSG_PEEK|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:rights])
	if err != nil || n == 0 || len(messages) != 1 {
		return 0, fmt.Errorf("the runtime sends no terminal: %w", errors.Join(err, unix.EPROTO))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, fmt.Errorf("the runtime sends no terminal: %w", errors.Join(err, unix.EPROTO))
	}
	return fds[0], nil
}
