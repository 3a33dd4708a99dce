package host

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		target := service.Group{Name: "t.target", Source: service.Source{Kind: service.FromTarget}}
		m.units = []service.Group{unitOf("a", service.Dependencies{}), reloading(unitOf("b", service.Dependencies{})), target}
		f := m.host(t)
		defer f.leave()
		for name, want := range map[string]string{"a": "it is not active", "t.target": "has no processes", "x": "there is no group x"} {
			if _, err := f.h.Freeze(t.Context(), name, true); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		freeze := func(name string, frozen, changed bool) {
			t.Helper()
			if res, err := f.h.Freeze(t.Context(), name, frozen); err != nil || res.Changed != changed {
				t.Errorf("%s: %+v, %v", name, res, err)
			}
		}
		_, _ = f.do("a", "start"), f.do("b", "start")
		f.said()
		freeze("a", true, true)
		freeze("a", true, false)
		if g, _ := f.h.Group(t.Context(), "a"); !g.Status.Frozen || g.ActiveState != "active" {
			t.Errorf("%+v", g)
		}
		freeze("a", false, true)
		freeze("a", true, true)
		freeze("b", true, true)
		_ = f.do("a", "stop")
		_, _ = f.h.Do(t.Context(), "b", "reload", "test", false, nil)
		f.expect("freeze a, thaw a, freeze a, freeze b, thaw a, end a, thaw b, start b")
		if g, _ := f.h.Group(t.Context(), "b"); g.Status.Frozen {
			t.Error("b is still frozen")
		}
	})
}

func TestClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		a := unitOf("a", service.Dependencies{})
		a.Services[0].Exec.State = []service.Directory{{Path: "lib"}}
		m.units = []service.Group{a, unitOf("none", service.Dependencies{})}
		f := m.host(t)
		defer f.leave()
		clean := func(name, want string, what ...string) {
			t.Helper()
			_, err := f.h.Clean(t.Context(), name, what)
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		clean("a", "")
		clean("a", "", "state", "logs")
		clean("a", "", "all")
		clean("a", `"states" is nothing`, "states")
		clean("none", "has no directories")
		go func() { time.Sleep(time.Second / 2); _ = f.do("a", "start") }() // while it is cleaned
		clean("a", "", "state")
		synctest.Wait()
		_ = f.do("a", "start")
		clean("a", "not inactive or failed")
		f.expect("clean cache runtime fdstore of lib, clean state logs of lib, clean configuration state cache logs runtime fdstore of lib, clean state of lib, start a")
	})
}

// TestCleanTimer: a timer with Persistent= forgets when it has elapsed.
func TestCleanTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.units = []service.Group{
			{Name: "a.timer", Source: service.Source{Kind: service.FromUnit}, Timer: &service.Timer{Unit: "a", Persistent: true, OnCalendar: []string{"*-*-* *:00:00"}}},
			unitOf("a", service.Dependencies{}),
		}
		f := m.host(t)
		defer f.leave()
		_, _ = f.do("a.timer", "start"), f.do("a.timer", "stop")
		if len(m.saved) == 0 || len(f.h.stamps) != 1 {
			t.Fatalf("nothing is stamped: %v", f.h.stamps)
		}
		if _, err := f.h.Clean(t.Context(), "a.timer", []string{"state"}); err != nil || len(f.h.stamps) != 0 {
			t.Errorf("%v, %v", err, f.h.stamps)
		}
	})
}
