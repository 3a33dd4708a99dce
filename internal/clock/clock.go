// Package clock reads the machine's two clocks, the time of day and the uptime,
// and tells when somebody has set the first. It never sets one itself.
package clock

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the machine's.
type Clock struct {
	jumped chan struct{}
	timer  *os.File
}

// Open begins to watch for jumps of the time of day.
func Open() (*Clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch the clock: %w", err)
	}
	c := &Clock{jumped: make(chan struct{}, 1), timer: os.NewFile(uintptr(fd), "timerfd")}
	if err := c.arm(); err != nil {
		c.timer.Close()
		return nil, fmt.Errorf("cannot watch the clock: %w", err)
	}
	go c.watch()
	return c, nil
}

// arm sets the timer to a time that never comes; the kernel cancels it when the
// clock is set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
func (c *Clock) arm() error {
	conn, err := c.timer.SyscallConn()
	if err != nil {
		return err
	}
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: 1 << 40}}
	var set error
	err = conn.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
	})
	return errors.Join(err, set)
}

func (c *Clock) watch() {
	var buf [8]byte
	for {
		_, err := c.timer.Read(buf[:])
		switch {
		case errors.Is(err, unix.ECANCELED):
			select {
			case c.jumped <- struct{}{}:
			default:
			}
		case err != nil:
			return // closed
		}
		if c.arm() != nil {
			return
		}
	}
}

// Close ends the watch.
func (c *Clock) Close() error { return c.timer.Close() }

// Jumped tells that the time of day was set.
func (c *Clock) Jumped() <-chan struct{} { return c.jumped }

// Real is the time of day.
func (c *Clock) Real() time.Time { return time.Now().Round(0) }

// Uptime is the time since the machine booted, without that in suspend.
func (c *Clock) Uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // always there
	return time.Duration(t.Nano())
}
