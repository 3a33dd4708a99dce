package host

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// records are what the store holds of runs.
func (m *machineFake) records() map[string]record {
	runs := map[string]record{}
	for k, v := range m.saved {
		if name, ok := strings.CutPrefix(k, "runs "); ok {
			runs[name] = v.(record)
		}
	}
	return runs
}

// diedInStart gives a machine on which legiond was killed after it had forked
// the process of the service and before it had the news of it.
func diedInStart(t *testing.T, g service.Group) *machineFake {
	m := newFake()
	m.units = []service.Group{g}
	f := m.host(t)
	m.slow[g.Name] = time.Millisecond
	if _, err := f.h.Do(t.Context(), g.Name, "start", "test", false, nil); err != nil {
		t.Fatal(err)
	}
	f.leave()
	time.Sleep(time.Second)
	f.expect("start " + g.Name)
	clear(m.slow)
	return m
}

// TestIntentUnderExec: the process that an earlier legiond has forked is in the
// middle of exec, where nothing tells whose it is. It is waited for.
func TestIntentUnderExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := diedInStart(t, unitOf("a", service.Dependencies{}))
		began := time.Now()
		m.origin = func(int) Origin {
			if time.Since(began) < 20*time.Millisecond {
				return Unborn
			}
			return Heir
		}
		f := m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		time.Sleep(time.Second)
		f.expect("")
		if got := f.state("a"); got != "running" {
			t.Errorf("it is %s", got)
		}
	})
}

// TestIntentNeverExecuted: what does not get so far is ended, and started again.
func TestIntentNeverExecuted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := diedInStart(t, unitOf("a", service.Dependencies{}))
		old := 0
		for pid := range m.procs {
			old = pid
		}
		m.origin = func(pid int) Origin {
			if pid == old {
				return Unborn
			}
			return Heir
		}
		f := m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		time.Sleep(2 * birthWait)
		f.expect("end a, start a")
		if got := f.state("a"); got != "running" {
			t.Errorf("it is %s", got)
		}
	})
}

// TestIntentOfANamelessDaemon: a daemon that has written over its environment
// is not started a second time.
func TestIntentOfANamelessDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := diedInStart(t, unitOf("a", service.Dependencies{}))
		m.origin = func(int) Origin { return Nameless }
		f := m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		f.expect("")
		if got := f.state("a"); got != "running" {
			t.Errorf("it is %s", got)
		}
	})
}

// TestIntentThatLeftOthers: what was started has ended already, and what it
// started has not.
func TestIntentThatLeftOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := unitOf("a", service.Dependencies{})
		g.Services[0].Restart = service.Restart{Mode: service.RestartAlways}
		m := diedInStart(t, g)
		m.follows = slices.Collect(maps.Keys(m.procs))
		f := m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		m.empty <- "a"
		time.Sleep(time.Second)
		f.expect("end a, start a")
		if in := m.records()["a"].Instances["a"]; in.Run != 2 || in.Previous == nil || !in.Previous.Exit.Unknown {
			t.Errorf("it is %+v", in)
		}
	})
}

// TestIntentThatForksWhileItIsLookedFor: the start command of a Type=forking
// service is listed, leaves its daemon behind, and has ended when it is looked
// at. The daemon, which was not listed, is found.
func TestIntentThatForksWhileItIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := unitOf("a", service.Dependencies{})
		g.Services[0].Type, g.Services[0].TimeoutStart = service.Forking, time.Minute
		m := diedInStart(t, g)
		const daemon = 1000
		m.follows = []int{daemon}
		m.origin = func(pid int) Origin {
			if pid == daemon {
				return Heir
			}
			m.be(func() {
				m.procs[daemon] = &procFake{m, daemon, "a"}
				m.end(m.procs[pid], service.Exit{At: time.Now()})
			})
			return Gone
		}
		f := m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		time.Sleep(time.Second)
		f.expect("end a")
		if in := m.records()["a"].Instances["a"]; in.State != service.Running || in.Main == nil || in.Main.PID != daemon {
			t.Errorf("it is %+v", in)
		}
	})
}

// TestStartOfNotifyIsMissed: only a legiond that follows a crashed one knows
// that a READY=1 may be lost.
func TestStartOfNotifyIsMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := unitOf("n", service.Dependencies{})
		g.Services[0].Type, g.Services[0].TimeoutStart = service.Notify, time.Minute
		for _, handed := range []bool{false, true} {
			m := newFake()
			m.units = []service.Group{g}
			f := m.host(t)
			if _, err := f.h.Do(t.Context(), "n", "start", "test", false, nil); err != nil {
				t.Fatal(err)
			}
			f.expect("start n")
			f.leave()
			o := m.options(Saved{Runs: m.records()})
			if handed {
				o.Handover = &Handover{}
			}
			f = m.hostOf(t, o)
			time.Sleep(2 * time.Minute)
			want := map[bool]string{false: "running", true: "failed"}[handed]
			if got := f.state("n"); got != want {
				t.Errorf("handed over %v: it is %s, want %s", handed, got, want)
			}
			f.leave()
		}
	})
}
