package host

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

func ephemeral(name string) service.Service {
	return service.Service{
		Name: name, Ephemeral: true, Stage: 4, Type: service.Exec, Start: []service.Command{{Path: "/x"}},
		Kill: service.Kill{Mode: service.KillMixed}, TimeoutStop: 30 * time.Second,
	}
}

func with(g service.Group, more ...service.Service) service.Group {
	g.Services = slices.Concat(g.Services, more)
	return g
}

// TestEphemeral: a service that is added to a group which runs is started, once;
// neither its end nor a definition without it changes anything for the others.
func TestEphemeral(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := stagedPod(service.RestartAlways)
		f.put(g)
		f.expect("start first")
		f.put(with(g, ephemeral("early")))
		f.expect("start early")
		if _, err := f.h.Put(context.Background(), with(g, service.Service{Name: "more", Start: []service.Command{{Path: "/x"}}}), "test"); err == nil {
			t.Error("a service that is not ephemeral was added to a group that runs")
		}
		m.crash("pod-1/first", 0)
		f.expect("end pod-1/first, start side")
		time.Sleep(6 * time.Second)
		f.expect("start second")
		m.crash("pod-1/second", 0)
		f.expect("end pod-1/second, start main") // early is not waited for
		f.put(with(g, ephemeral("late")))
		f.expect("start late")
		m.crash("pod-1/early", 1)
		f.expect("end pod-1/early")
		m.crash("pod-1/main", 1)
		f.expect("end pod-1/main, start main")
		f.put(g)
		f.expect("")
		if s := f.service("late"); s.State != service.Running || !s.Ephemeral {
			t.Errorf("late: %+v", s)
		}
		if got, err := f.h.Group(context.Background(), "pod-1"); err != nil || got.ActiveState != "active" {
			t.Errorf("the group is %s (%v), though nothing but early has failed", got.ActiveState, err)
		}
		f.remove(g, 20*time.Second)
		time.Sleep(time.Minute)
		f.expect("end pod-1/main, end pod-1/late, end pod-1/side")
		if _, err := f.h.Group(context.Background(), "pod-1"); err == nil {
			t.Error("the group is still there")
		}
	})
}

// TestEphemeralEnds: when the work of the group is done, it is over.
func TestEphemeralEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := stagedPod(service.RestartNo)
		g.Services = g.Services[3:]
		f.put(g)
		f.expect("start main")
		f.put(with(g, ephemeral("late")))
		f.expect("start late")
		m.crash("pod-1/main", 0)
		f.expect("end pod-1/main, end pod-1/late")
		if _, err := f.h.Put(context.Background(), with(g, ephemeral("late"), ephemeral("too late")), "test"); err != nil {
			t.Error(err)
		}
		f.expect("")
	})
}

// TestEphemeralAfterDeath: a legiond that dies before it has started what was
// added leaves that to the next; what has run is not run again.
func TestEphemeralAfterDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		g := stagedPod(service.RestartAlways)
		g.Services = g.Services[3:]
		f.put(g)
		f.put(with(g, ephemeral("one")))
		f.expect("start main, start one")
		m.crash("pod-1/one", 0)
		f.expect("end pod-1/one")
		f.leave()
		added := with(g, ephemeral("one"), ephemeral("two"))
		f = m.hostWith(t, Saved{Groups: map[string]service.Group{g.Name: added}, Runs: m.records()})
		defer f.leave()
		f.expect("start two")
	})
}
