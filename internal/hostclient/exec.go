package hostclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// past is a deadline that is over.
var past = time.Unix(1, 0)

// Exec runs a command in the surroundings of a service, with these standard
// descriptors, to its end. The caller's copies are closed as soon as the process
// has its own, and in any case. When ctx ends first, the process is killed.
func (c *Client) Exec(ctx context.Context, name string, r hostapi.ExecRequest, stdio [3]*os.File) (service.Exit, error) {
	defer closeFiles(stdio)
	conn, err := c.dial(ctx)
	if err != nil {
		return service.Exit{}, c.unreachable(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })()
	exit, err := c.exec(conn, name, r, stdio)
	if ctx.Err() != nil {
		return exit, context.Cause(ctx)
	}
	return exit, err
}

func (c *Client) exec(conn net.Conn, name string, r hostapi.ExecRequest, stdio [3]*os.File) (service.Exit, error) {
	lines, err := c.upgrade(conn, name, "/exec", hostapi.ExecProtocol, r)
	if err != nil {
		return service.Exit{}, err
	}
	// Fd would make the open files blocking, which the process wants anyway.
	rights := unix.UnixRights(int(stdio[0].Fd()), int(stdio[1].Fd()), int(stdio[2].Fd()))
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, rights, nil); err != nil {
		return service.Exit{}, c.unreachable(err)
	}
	closeFiles(stdio)
	for {
		var e hostapi.ExecEvent
		if err := lines.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("it ended while the command ran")
			}
			return service.Exit{}, c.unreachable(err)
		}
		switch {
		case e.Error != nil:
			return service.Exit{}, e.Error
		case e.Exit != nil:
			return *e.Exit, nil
		}
	}
}

// upgrade sends the request; what comes after the answer is to be decoded.
func (c *Client) upgrade(conn net.Conn, name, what, protocol string, r any) (*json.Decoder, error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("cannot write the request: %w", err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://legiond"+group(name, what), bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return nil, c.unreachable(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return json.NewDecoder(in), nil
}

func closeFiles(files [3]*os.File) {
	for _, f := range files {
		_ = f.Close() // a second time does no harm
	}
}
