package runner

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// span is between which ticks of the clock a process was forked.
type span struct{ from, to uint64 }

// perSecond is USER_HZ, the same on every machine that Go knows.
const perSecond = 100

// bootTicks is the time since the machine booted, as /proc/PID/stat gives it: a
// new process gets its start time from CLOCK_BOOTTIME.
func bootTicks() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return uint64(t.Sec)*perSecond + uint64(t.Nsec)/(1e9/perSecond)
}

// ticks tells when a child started with no look at /proc, which the kernel makes
// dear, as a rule: a fork is short beside a tick. Whether this kernel counts so
// is seen at the first children.
type ticks struct {
	// alike is for how many it has; less than 0 if for one not.
	alike atomic.Int64
}

const alikeEnough = 3

// of is StartTicks of a child that was forked in the span.
func (k *ticks) of(pid int, born span) (uint64, error) {
	known := born.from == born.to
	if known && k.alike.Load() >= alikeEnough {
		return born.from, nil
	}
	told, err := StartTicks(pid)
	switch {
	case err != nil:
	case told < born.from || told > born.to:
		k.alike.Store(-1 << 32)
	case known:
		k.alike.Add(1)
	}
	return told, err
}
