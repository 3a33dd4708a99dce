package host

import (
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// TestTransientTimer: a timer that was put goes when it cannot elapse again, and
// what it starts goes after it, also where it never came to that.
func TestTransientTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().host(t)
		defer f.leave()
		put := func(every time.Duration) {
			t.Helper()
			a := unitOf("a", service.Dependencies{})
			a.Source, a.Services[0].Type = service.Source{}, service.Oneshot
			a.Annotations = map[string]string{transientKey: "success"}
			timer := service.Group{Name: "a.timer", Boot: true, Annotations: map[string]string{transientKey: "always"}}
			timer.Timer = &service.Timer{Unit: "a", OnActive: []time.Duration{time.Minute}, EndsAfterElapse: true}
			if every > 0 {
				timer.Timer.OnUnitInactive = []time.Duration{every}
			}
			for _, g := range []service.Group{a, timer} {
				if _, err := f.h.Put(t.Context(), g, "test"); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
		}
		there := func(names ...string) {
			t.Helper()
			synctest.Wait()
			list, _ := f.h.Groups(t.Context())
			got := []string{}
			for _, g := range list {
				got = append(got, g.Spec.Name)
			}
			if len(got) != len(names) {
				t.Errorf("there are %q, want %q", got, names)
			}
		}
		put(0)
		there("a", "a.timer")
		time.Sleep(time.Minute + time.Second) // virtual
		f.expect("start a")
		f.m.crash("a", 0)
		there()
		put(time.Hour)
		for range 3 {
			time.Sleep(time.Hour + time.Minute) // virtual
			f.m.crash("a", 0)
			there("a", "a.timer")
		}
		f.expect("end a, start a, end a, start a, end a, start a, end a")
		_ = f.do("a.timer", "stop")
		there()
		put(0)
		_ = f.do("a.timer", "stop")
		there()
	})
}

// TestAdopted: a process that runs already is a service's own until it ends.
func TestAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		p, err := m.Start(Request{Service: "stranger", Cgroup: "elsewhere"})
		if err != nil {
			t.Fatal(err)
		}
		scope := func(pid int) service.Group {
			return service.Group{Name: "x.scope", Annotations: map[string]string{transientKey: "always"}, Services: []service.Service{{
				Name: "x.scope", Type: service.Simple, TimeoutStop: time.Minute,
				Start: []service.Command{{Path: "/x", Argv: []string{"x"}, Adopt: &service.Adopted{PID: pid, StartTicks: 1}}},
			}}}
		}
		put := func(pid int) {
			t.Helper()
			if _, err := f.h.Put(t.Context(), scope(pid), "test"); err != nil {
				t.Fatal(err)
			}
		}
		put(p.PID())
		if err := f.do("x.scope", "start"); err != nil {
			t.Fatal(err)
		}
		if g, _ := f.h.Group(t.Context(), "x.scope"); g.SubState != "running" || g.Status.Services[0].Main.PID != p.PID() {
			t.Errorf("%+v", g.Status)
		}
		if err := f.do("x.scope", "stop"); err != nil {
			t.Error(err)
		}
		f.expect("start stranger, move 101 to x.scope, end x.scope")
		put(4711)
		if err := f.do("x.scope", "start"); err == nil {
			t.Error("a process that is gone was taken in")
		}
	})
}
