package hostclient

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"

	"legion.dev/legion/internal/hostapi"
)

// ErrLost is wrapped by the error of CopyTo where the connection ended and the
// run, as far as is known, did not.
var ErrLost = errors.New("legiond ended; what it runs goes on: attach again")

// Attached is a client of what a service reads from. It is for one writer and
// one reader.
type Attached struct {
	conn net.Conn
	in   *json.Decoder
	mu   sync.Mutex // of out
	out  *json.Encoder
}

// Attach attaches to a service until Close. Whatever comes from its terminal
// after Attach has returned is there for CopyTo.
func (c *Client) Attach(ctx context.Context, name string, r hostapi.AttachRequest) (*Attached, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })()
	in, err := c.upgrade(conn, name, "/attach", hostapi.AttachProtocol, r)
	if err == nil {
		err = joined(in)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return &Attached{conn: conn, in: in, out: json.NewEncoder(conn)}, nil
}

// joined waits until legiond passes on what comes.
func joined(in *json.Decoder) error {
	var m hostapi.AttachOutput
	if err := in.Decode(&m); err != nil {
		return errors.Join(ErrLost, err)
	}
	if m.Error != nil {
		return m.Error
	}
	return nil
}

// Write sends input.
func (a *Attached) Write(p []byte) (int, error) {
	if err := a.send(hostapi.AttachInput{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Resize tells of the size of the client's terminal.
func (a *Attached) Resize(rows, columns uint16) error {
	return a.send(hostapi.AttachInput{Rows: rows, Columns: columns})
}

// CloseInput tells that there is no more input.
func (a *Attached) CloseInput() error { return a.send(hostapi.AttachInput{Close: true}) }

func (a *Attached) send(m hostapi.AttachInput) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.Encode(m)
}

// CopyTo writes what comes from the service's terminal, and returns nil when the
// run is over.
func (a *Attached) CopyTo(w io.Writer) error {
	for {
		var m hostapi.AttachOutput
		if err := a.in.Decode(&m); err != nil {
			return errors.Join(ErrLost, err)
		}
		switch {
		case m.Error != nil:
			return m.Error
		case m.Ended:
			return nil
		}
		if _, err := w.Write(m.Data); err != nil {
			return err
		}
	}
}

// Close leaves. What was written is read by the service.
func (a *Attached) Close() error { return a.conn.Close() }
