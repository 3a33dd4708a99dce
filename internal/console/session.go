package console

import (
	"encoding/json"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
)

// past is a deadline that is over.
var past = time.Unix(1, 0)

// A client that takes nothing for so long while output waits for it is cut off:
// whoever writes to a terminal waits for those who look at it. That many pieces
// wait before that.
const (
	patience = 10 * time.Second
	waiting  = 64
)

// session is one client that is attached.
type session struct {
	conn net.Conn
	out  chan []byte
	// over is closed when nothing more comes, gone when the client has left.
	over, gone    chan struct{}
	finish, leave func()
}

func newSession(conn net.Conn) *session {
	s := &session{conn: conn, out: make(chan []byte, waiting), over: make(chan struct{}), gone: make(chan struct{})}
	s.finish = sync.OnceFunc(func() { close(s.over) })
	s.leave = sync.OnceFunc(func() {
		close(s.gone)
		_ = conn.Close()
	})
	return s
}

// give has data written to the client. Where there is no room it waits; at the
// end of the run the client is cut off instead.
func (s *session) give(data []byte, ending <-chan struct{}, last bool) {
	if !last {
		select {
		case s.out <- data:
		case <-s.gone:
		case <-ending:
			s.offer(data)
		}
		return
	}
	s.offer(data)
}

func (s *session) offer(data []byte) {
	select {
	case s.out <- data:
	default:
		s.leave()
	}
}

// write tells the client that it is attached, and sends what it is given until
// the client leaves or takes nothing, or that was all.
func (s *session) write() {
	defer s.leave()
	out := json.NewEncoder(s.conn)
	send := func(m hostapi.AttachOutput) bool {
		_ = s.conn.SetWriteDeadline(time.Now().Add(patience))
		return out.Encode(m) == nil
	}
	if !send(hostapi.AttachOutput{Attached: true}) {
		return
	}
	for {
		select {
		case data := <-s.out:
			if !send(hostapi.AttachOutput{Data: data}) {
				return
			}
		case <-s.gone:
			return
		case <-s.over:
			for len(s.out) > 0 {
				if !send(hostapi.AttachOutput{Data: <-s.out}) {
					return
				}
			}
			send(hostapi.AttachOutput{Ended: true})
			return
		}
	}
}

// attach serves a client. Input that cannot be written, because the process has
// closed its end, is for nobody.
func (c *console) attach(conn net.Conn, input bool) error {
	s := newSession(conn)
	if err := c.join(s, input); err != nil {
		return err
	}
	var writer sync.WaitGroup
	writer.Go(s.write)
	in := json.NewDecoder(conn)
	for {
		var m hostapi.AttachInput
		if in.Decode(&m) != nil {
			break
		}
		switch {
		case m.Rows > 0 && m.Columns > 0:
			c.resize(m.Rows, m.Columns)
		case m.Close && input:
			c.closePipe()
		case input:
			c.input(m.Data)
		}
	}
	s.leave()
	writer.Wait()
	c.mu.Lock()
	delete(c.attached, s)
	c.mu.Unlock()
	if input {
		c.closePipe()
	}
	return nil
}

func (c *console) join(s *session, input bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.attached == nil:
		return ErrNone
	case input && c.own.FD == 0:
		return ErrClosed
	}
	c.attached[s] = struct{}{}
	return nil
}

// current is the file to write to, once it is there; nil if it is closed.
func (c *console) current() *os.File {
	<-c.known
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file
}

func (c *console) input(data []byte) {
	if f := c.current(); f != nil {
		_, _ = f.Write(data)
	}
}

// resize gives the terminal the size of the client's.
func (c *console) resize(rows, columns uint16) {
	<-c.known
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own.Name == Terminal {
		_ = unix.IoctlSetWinsize(c.own.FD, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	}
}
