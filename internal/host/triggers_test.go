package host

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
)

// clockFake is the bubble's clock, with a time of day that the test sets.
type clockFake struct {
	plainClock
	offset time.Duration
	jumps  chan struct{}
}

func (c *clockFake) Real() time.Time         { return time.Now().Round(0).Add(c.offset) }
func (c *clockFake) Jumped() <-chan struct{} { return c.jumps }

func newClock() *clockFake { return &clockFake{plainClock{time.Now()}, 0, make(chan struct{}, 1)} }

func (c *clockFake) set(offset time.Duration) {
	c.offset = offset
	c.jumps <- struct{}{}
	synctest.Wait()
}

func timerOf(name string, t service.Timer) service.Group {
	return service.Group{
		Name: name, Source: service.Source{Kind: service.FromUnit, Files: []string{name}}, Timer: &t,
		Deps: service.Dependencies{Before: []string{t.Unit}},
	}
}

// oneshot is a unit that runs until the test ends it.
func oneshot(name string) service.Group {
	g := unitOf(name, service.Dependencies{})
	g.Services[0].Type = service.Oneshot
	return g
}

func TestTimerRunsAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.units = []service.Group{oneshot("x"), timerOf("x.timer", service.Timer{
			OnActive: []time.Duration{time.Minute}, OnUnitInactive: []time.Duration{time.Hour}, Unit: "x",
		})}
		f := m.host(t)
		defer f.leave()
		if err := f.do("x.timer", "start"); err != nil {
			t.Fatal(err)
		}
		if got := f.state("x.timer"); got != "waiting" {
			t.Errorf("it is %s", got)
		}
		time.Sleep(59 * time.Second)
		f.expect("")
		time.Sleep(time.Second)
		f.expect("start x")
		if got := f.state("x.timer"); got != "running" {
			t.Errorf("while its unit runs it is %s", got)
		}
		time.Sleep(2 * time.Hour) // the unit runs on, so nothing elapses
		f.expect("")
		m.crash("x", 0)
		f.expect("end x")
		time.Sleep(time.Hour)
		f.expect("start x")
		m.crash("x", 1)
		f.expect("end x")
		time.Sleep(time.Hour) // a failure does not end it
		f.expect("start x")
		m.crash("x", 0)
		f.said()
		if err := f.do("x.timer", "stop"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Hour)
		f.expect("")
		if got := f.state("x.timer"); got != "dead" {
			t.Errorf("stopped it is %s", got)
		}
	})
}

func TestTimerOverClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it begins at midnight UTC, 2000-01-01
		m, c := newFake(), newClock()
		m.units = []service.Group{oneshot("x"), oneshot("y"), timerOf("x.timer", service.Timer{
			OnCalendar: []string{"*-*-* 06:00:00 UTC"}, Unit: "x",
		}), timerOf("y.timer", service.Timer{OnActive: []time.Duration{2 * time.Hour}, Unit: "y"})}
		f := m.hostOn(t, Saved{}, c)
		defer f.leave()
		for _, n := range []string{"x.timer", "y.timer"} {
			if err := f.do(n, "start"); err != nil {
				t.Fatal(err)
			}
		}
		c.set(7 * time.Hour) // 07:00: x is due, y is not
		f.expect("start x")
		m.crash("x", 0)
		f.said()
		time.Sleep(2 * time.Hour)
		f.expect("start y")
		m.crash("y", 0)
		f.said()
		if got := f.state("y.timer"); got != "elapsed" {
			t.Errorf("y.timer is %s", got)
		}
		c.set(0) // back to 02:00: x elapses at 06:00 again
		time.Sleep(4*time.Hour - time.Second)
		f.expect("")
		time.Sleep(time.Second)
		f.expect("start x")
	})
}

func TestTimerOutlivesLegiond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, c := newFake(), newClock()
		m.units = []service.Group{oneshot("x"), oneshot("y"), timerOf("x.timer", service.Timer{
			OnActive: []time.Duration{time.Hour}, Unit: "x",
		}), timerOf("y.timer", service.Timer{OnCalendar: []string{"*-*-* 00:30 UTC"}, Persistent: true, Unit: "y"})}
		f := m.hostOn(t, Saved{}, c)
		for _, n := range []string{"x.timer", "y.timer"} {
			if err := f.do(n, "start"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(20 * time.Minute)
		f.leave()
		f.expect("")
		time.Sleep(20 * time.Minute) // nobody is there at 00:30
		f = m.hostOn(t, m.savedNow(), c)
		f.expect("start y")
		m.crash("y", 0)
		f.said()
		time.Sleep(20*time.Minute - time.Second)
		f.expect("")
		time.Sleep(time.Second)
		f.expect("start x")
		v, err := f.h.Explain(context.Background(), "y.timer")
		if err != nil || !strings.Contains(strings.Join(v.Next, " "), "starts y") {
			t.Errorf("it is explained as %+v, %v", v, err)
		}
		f.leave()
	})
}

// hostOn is hostWith, with a clock.
func (m *machineFake) hostOn(t *testing.T, saved Saved, c Clock) *fixture {
	m.clock = c
	return m.hostWith(t, saved)
}

// savedNow is what the next legiond finds on the disk.
func (m *machineFake) savedNow() Saved {
	s := Saved{Runs: map[string]record{}, Stamps: map[string]stamp{}}
	for key, v := range m.saved {
		kind, name, _ := strings.Cut(key, " ")
		switch store.Kind(kind) {
		case store.Runs:
			s.Runs[name] = v.(record)
		case store.Stamps:
			s.Stamps[name] = v.(stamp)
		}
	}
	return s
}
