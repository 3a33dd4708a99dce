package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/notify"
)

// op is what a packet between legiond and its keeper is about.
type op string

const (
	put  op = "put"  // here are descriptors to hold under the key
	drop op = "drop" // close those of the key that have the name, or all
	note op = "note" // a service has said this
	full op = "full" // that was all
	done op = "done" // what services have said has been dealt with
	end  op = "end"  // nothing is to be held any more
)

// packet is one message on the connection, as JSON; descriptors go beside it.
type packet struct {
	Op   op              `json:"op"`
	Key  string          `json:"key,omitempty"`
	Name string          `json:"name,omitempty"`
	Note *notify.Message `json:"note,omitempty"`
}

// The most that a packet takes: a message of sd_notify(3) is a page, of which
// JSON may make six, and the kernel passes at most 253 descriptors at a time.
const (
	maxPacket = 64 << 10
	maxFDs    = 253
)

func send(conn int, p packet, fds ...int) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err = unix.Sendmsg(conn, data, rights, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receiver reads packets; the error is io.EOF where the other end is closed.
type receiver struct {
	conn      int
	data, oob []byte
}

func newReceiver(conn int) *receiver {
	return &receiver{conn, make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxFDs))}
}

func (r *receiver) next() (packet, []int, error) {
	var p packet
	n, oobn, flags, _, err := unix.Recvmsg(r.conn, r.data, r.oob, unix.MSG_CMSG_CLOEXEC)
	for errors.Is(err, unix.EINTR) {
		n, oobn, flags, _, err = unix.Recvmsg(r.conn, r.data, r.oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return p, nil, err
	}
	fds, err := rights(r.oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("a packet was cut")
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		err = json.Unmarshal(r.data[:n], &p)
	}
	if err != nil {
		closeAll(fds)
		return p, nil, err
	}
	return p, fds, nil
}

func rights(oob []byte) (fds []int, err error) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("descriptors cannot be read: %w", err)
	}
	for _, c := range controls {
		if got, err := unix.ParseUnixRights(&c); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
