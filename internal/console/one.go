package console

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// console is that of one run.
type console struct {
	key    string
	keeper Keeper
	// ready is closed once it is known what is written to, or that nothing is.
	ready func()
	known chan struct{}
	// ending is closed when the run is over, or legiond about to be replaced;
	// received and pumped when what goes on beside has ended. Both may be nil.
	ending           chan struct{}
	received, pumped chan struct{}

	mu   sync.Mutex
	own  File     // what Suspend gives; FD 0 is nothing
	file *os.File // the same
	log  *os.File
	// attached is nil once nobody can attach any more.
	attached map[*session]struct{}
}

func newConsole(key string, k Keeper) *console {
	c := &console{key: key, keeper: k, known: make(chan struct{}), ending: make(chan struct{}), attached: map[*session]struct{}{}}
	c.ready = sync.OnceFunc(func() { close(c.known) })
	return c
}

// hold takes a file and begins what is to be done with it.
func (c *console) hold(f File, log string) error {
	if f.Name == Terminal || f.Name == Connection || f.Name == Listener {
		// The journal has it open for reading, so this does not wait.
		file, err := os.OpenFile(log, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			unix.Close(f.FD)
			return fmt.Errorf("open the log for its terminal: %w", err)
		}
		c.log = file
	}
	c.take(f)
	switch f.Name {
	case Terminal:
		c.begin()
	case Connection, Listener:
		c.received = make(chan struct{})
		go c.receive()
	default:
		c.ready()
	}
	return nil
}

// take makes a file the one that there is; the one before is the caller's.
func (c *console) take(f File) {
	// Flags are of the open file, which no process but this one works with.
	_ = unix.SetNonblock(f.FD, true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own, c.file = f, os.NewFile(uintptr(f.FD), f.Name)
}

// begin passes on what comes from the terminal.
func (c *console) begin() {
	c.pumped = make(chan struct{})
	go c.pump(c.file)
	c.ready()
}

func (c *console) pump(terminal *os.File) {
	defer close(c.pumped)
	buf := make([]byte, 32<<10)
	for {
		n, err := terminal.Read(buf)
		c.pass(buf[:n], false)
		if err != nil {
			return // EIO: no process has it open any more
		}
	}
}

// pass gives what has come to the log and to those attached, for whom it waits
// as a terminal does, but not at the end.
func (c *console) pass(data []byte, last bool) {
	if len(data) == 0 {
		return
	}
	_, _ = c.log.Write(data) // the journal reads it as long as there is a console
	c.mu.Lock()
	all := make([]*session, 0, len(c.attached))
	for s := range c.attached {
		all = append(all, s)
	}
	c.mu.Unlock()
	if len(all) > 0 {
		data = slices.Clone(data)
	}
	for _, s := range all {
		s.give(data, c.ending, last)
	}
}

// stop ends what goes on beside; nothing that has come is lost.
func (c *console) stop() {
	close(c.ending)
	c.mu.Lock()
	file := c.file
	c.mu.Unlock()
	if file != nil {
		_ = file.SetReadDeadline(past)
	}
	if c.received != nil {
		<-c.received
	}
	if c.pumped != nil {
		// There may be one only since it was received.
		_ = c.file.SetReadDeadline(past)
		<-c.pumped
	}
	c.ready()
}

func (c *console) end() {
	c.stop()
	if c.pumped != nil {
		c.rest()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.attached {
		s.finish()
	}
	c.attached = nil
	held := c.own.FD > 0
	c.close()
	if c.log != nil {
		_ = c.log.Close()
	}
	if held {
		c.keeper.Drop(c.key, "")
	}
}

// close forgets the file; mu is held.
func (c *console) close() {
	if c.file != nil {
		_ = c.file.Close()
	}
	c.own, c.file = File{}, nil
}

// rest passes on what is in the terminal; the kernel tells of all that a process
// had written before it ended.
func (c *console) rest() {
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Read(c.own.FD, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n <= 0:
			return
		default:
			c.pass(buf[:n], true)
		}
	}
}

func (c *console) suspend() File {
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.attached {
		s.leave() // without a word that the run is over
	}
	c.attached = nil
	return c.own
}

// closePipe lets the process see the end of its input.
func (c *console) closePipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.own.Name == Once {
		c.close()
		c.keeper.Drop(c.key, "")
	}
}
