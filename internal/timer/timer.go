// Package timer knows when a timer unit elapses (systemd.timer(5)). Spans count
// on the clock of uptime, which nobody sets; calendar expressions follow the
// time of day, which may jump. The two are never mixed.
package timer

import (
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/service"
)

// Instance is all that is known of one timer that is up. It is plain data:
// written to disk and read again in the same boot, it goes on where it was.
type Instance struct {
	State service.TriggerState `json:"state"`
	Since time.Time            `json:"since"`
	// Activated is when it came up, by both clocks; Startup when legiond did.
	Activated   time.Duration `json:"activated"`
	ActivatedAt time.Time     `json:"activatedAt"`
	Startup     time.Duration `json:"startup"`
	// Last is when it elapsed last, by both clocks; zero for never. With
	// Persistent= LastAt may be of an earlier boot, and Last zero.
	Last   time.Duration `json:"last,omitempty"`
	LastAt time.Time     `json:"lastAt,omitzero"`
	// UnitStarted and UnitEnded are when its unit last did; zero for never.
	UnitStarted time.Duration `json:"unitStarted,omitempty"`
	UnitEnded   time.Duration `json:"unitEnded,omitempty"`
	// Next and NextAt are when it elapses, by the one and the other clock;
	// the first that comes counts. HasNext tells a Next of zero from none.
	HasNext bool          `json:"hasNext,omitempty"`
	Next    time.Duration `json:"next,omitempty"`
	NextAt  time.Time     `json:"nextAt,omitzero"`
}

// Now is the time by both clocks.
type Now struct {
	Uptime time.Duration
	Real   time.Time
	Zone   *time.Location
}

// Start brings a timer up. last is when it elapsed before, of Persistent=, or
// zero.
func Start(now Now, startup time.Duration, last time.Time) Instance {
	return Instance{
		Activated: now.Uptime, ActivatedAt: now.Real, Startup: startup, LastAt: last,
		State: service.TriggerWaiting, Since: now.Real,
	}
}

// Plan works out the next elapse. The seed names the host and the timer: the
// random delay is drawn from it.
func Plan(spec *service.Timer, in Instance, now Now, seed string) Instance {
	if in.LastAt.After(now.Real) {
		in.LastAt = now.Real // the clock was put back
	}
	in.HasNext, in.Next, in.NextAt = false, 0, time.Time{}
	in.planSpans(spec)
	if in.HasNext {
		in.Next += delay(spec, seed, strconv.FormatInt(int64(in.Next), 10))
	}
	in.planCalendar(spec, now)
	if !in.NextAt.IsZero() {
		d := delay(spec, seed, in.NextAt.UTC().Format(time.RFC3339Nano))
		// What was missed before legiond started is put off, too, or all
		// hosts that boot at once would catch up at once.
		if started := now.Real.Add(in.Startup - now.Uptime); d > 0 && in.NextAt.Before(started) {
			in.NextAt = started
		}
		in.NextAt = in.NextAt.Add(d)
	}
	state := service.TriggerWaiting
	if !in.HasNext && in.NextAt.IsZero() && !spec.OnClockChange {
		state = service.TriggerElapsed
	}
	if in.State != state {
		in.State, in.Since = state, now.Real
	}
	return in
}

// planSpans finds the first elapse of the spans. Those that count from what
// happens once elapse once.
func (in *Instance) planSpans(spec *service.Timer) {
	put := func(base time.Duration, spans []time.Duration, once bool) {
		for _, s := range spans {
			at := base + s
			if once && in.Last > 0 && at <= in.Last {
				continue
			}
			if !in.HasNext || at < in.Next {
				in.HasNext, in.Next = true, at
			}
		}
	}
	put(in.Activated, spec.OnActive, true)
	put(0, spec.OnBoot, true)
	put(in.Startup, spec.OnStartup, true)
	if base := max(in.UnitStarted, in.Last); base > 0 {
		put(base, spec.OnUnitActive, false)
	}
	if in.UnitEnded > 0 {
		put(max(in.UnitEnded, in.Last), spec.OnUnitInactive, false)
	}
}

func (in *Instance) planCalendar(spec *service.Timer, now Now) {
	base := in.LastAt
	if base.IsZero() {
		base = in.ActivatedAt
		if base.After(now.Real) {
			base = now.Real
		}
	}
	for _, text := range spec.OnCalendar {
		e, err := calendar.Parse(text)
		if err != nil {
			continue // the compiler has said so
		}
		if at, ok := e.Next(base, now.Zone); ok && (in.NextAt.IsZero() || at.Before(in.NextAt)) {
			in.NextAt = at
		}
	}
}

// Due says whether the timer elapses now.
func (in *Instance) Due(now Now) bool {
	if in.State != service.TriggerWaiting {
		return false
	}
	return in.HasNext && in.Next <= now.Uptime || !in.NextAt.IsZero() && !in.NextAt.After(now.Real)
}

// Wait is how long it is to the next elapse; false for none.
func (in *Instance) Wait(now Now) (time.Duration, bool) {
	if in.State != service.TriggerWaiting {
		return 0, false
	}
	var waits []time.Duration
	if in.HasNext {
		waits = append(waits, in.Next-now.Uptime)
	}
	if !in.NextAt.IsZero() {
		waits = append(waits, in.NextAt.Sub(now.Real))
	}
	if len(waits) == 0 {
		return 0, false
	}
	return max(0, slices.Min(waits)), true
}

// Elapse notes that it elapses now.
func (in Instance) Elapse(now Now) Instance {
	in.Last, in.LastAt = now.Uptime, now.Real
	in.HasNext, in.Next, in.NextAt = false, 0, time.Time{}
	in.State, in.Since = service.TriggerRunning, now.Real
	return in
}

// delay draws from the seed and, unless it is fixed, from the elapse itself.
func delay(spec *service.Timer, seed, elapse string) time.Duration {
	if spec.RandomizedDelay <= 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed))
	if !spec.FixedRandomDelay {
		_, _ = h.Write([]byte("\x00" + elapse))
	}
	// The last round mixes what FNV leaves in the low bits.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return time.Duration(x % uint64(spec.RandomizedDelay+1))
}
