package timer

import (
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func at(uptime time.Duration) Now { return Now{Uptime: uptime, Real: noon.Add(uptime), Zone: time.UTC} }

func wait(t *testing.T, in Instance, now Now, want time.Duration) {
	t.Helper()
	if got, ok := in.Wait(now); !ok || got != want {
		t.Errorf("it waits %v, %v, want %v (%+v)", got, ok, want, in)
	}
}

func TestSpans(t *testing.T) {
	spec := &service.Timer{OnBoot: []time.Duration{15 * time.Minute}, OnUnitActive: []time.Duration{time.Hour}, Unit: "x.service"}
	now := at(10 * time.Minute)
	in := Plan(spec, Start(now, time.Minute, time.Time{}), now, "s")
	wait(t, in, now, 5*time.Minute)
	now = at(15 * time.Minute)
	if !in.Due(now) {
		t.Error("it is not due")
	}
	in = in.Elapse(now)
	if in.Due(now) {
		t.Error("it is due while its unit runs")
	}
	in.UnitStarted = now.Uptime + time.Second
	now = at(20 * time.Minute)
	in = Plan(spec, in, now, "s")
	wait(t, in, now, 55*time.Minute+time.Second)
}

func TestBootSpanInThePastElapsesAtOnceAndOnce(t *testing.T) {
	spec := &service.Timer{OnBoot: []time.Duration{time.Second}}
	now := at(time.Hour)
	in := Plan(spec, Start(now, time.Minute, time.Time{}), now, "s")
	wait(t, in, now, 0)
	in = Plan(spec, in.Elapse(now), now, "s")
	if in.State != service.TriggerElapsed {
		t.Errorf("it is %s", in.State)
	}
}

func TestCalendarFollowsTheTimeOfDay(t *testing.T) {
	spec := &service.Timer{OnCalendar: []string{"*-*-* 18:00:00"}}
	now := at(time.Hour) // 13:00
	in := Plan(spec, Start(now, 0, time.Time{}), now, "s")
	wait(t, in, now, 5*time.Hour)
	// Put forward past the elapse: it is due. Put back: it is further away.
	now.Real = now.Real.Add(6 * time.Hour)
	if !in.Due(now) {
		t.Error("it is not due at 19:00")
	}
	back := at(time.Hour)
	back.Real = back.Real.Add(-12 * time.Hour) // 01:00
	wait(t, Plan(spec, in, back, "s"), back, 17*time.Hour)
	// Elapsed in what is now the future: the next one is of today.
	in = Plan(spec, in.Elapse(now), back, "s")
	wait(t, in, back, 17*time.Hour)
}

func TestPersistentCatchesUp(t *testing.T) {
	spec := &service.Timer{OnCalendar: []string{"daily"}, Persistent: true}
	now := at(time.Minute)
	in := Plan(spec, Start(now, 0, noon.AddDate(0, 0, -3)), now, "s")
	if !in.Due(now) {
		t.Errorf("what was missed is not due: %+v", in)
	}
	in = Plan(spec, in.Elapse(now), now, "s")
	wait(t, in, now, 12*time.Hour-time.Minute)
	// With a delay, what was missed is put off from the start of legiond.
	spec.RandomizedDelay = time.Hour
	in = Plan(spec, Start(now, 0, noon.AddDate(0, 0, -3)), now, "s")
	if d := in.NextAt.Sub(noon); d < 0 || d > time.Hour {
		t.Errorf("it is put off by %v", d)
	}
}

func TestRandomDelayIsStable(t *testing.T) {
	spec := &service.Timer{OnCalendar: []string{"daily"}, RandomizedDelay: time.Hour}
	now := at(0)
	drawn := map[time.Duration]bool{}
	for day := range 20 {
		now := Now{Uptime: now.Uptime, Real: noon.AddDate(0, 0, day), Zone: time.UTC}
		a := Plan(spec, Start(now, 0, time.Time{}), now, "host a")
		again := Plan(spec, Start(now, 0, time.Time{}), now, "host a")
		if !a.NextAt.Equal(again.NextAt) {
			t.Errorf("planned twice: %v and %v", a.NextAt, again.NextAt)
		}
		drawn[a.NextAt.Sub(a.NextAt.Truncate(24*time.Hour))] = true
	}
	if len(drawn) < 15 {
		t.Errorf("%d different delays on 20 days", len(drawn))
	}
	spec.FixedRandomDelay = true
	offsets := map[time.Duration]bool{}
	for _, seed := range []string{"a", "b", "c", "d"} {
		for day := range 5 {
			now := Now{Real: noon.AddDate(0, 0, day), Zone: time.UTC}
			in := Plan(spec, Start(now, 0, time.Time{}), now, seed)
			offsets[in.NextAt.Sub(in.NextAt.Truncate(24*time.Hour))] = true
		}
	}
	if len(offsets) != 4 {
		t.Errorf("four hosts have %d fixed delays", len(offsets))
	}
}
