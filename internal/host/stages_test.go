package host

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// stagedPod is a pod of two init containers, a sidecar between them, and a
// container.
func stagedPod(policy service.RestartMode) service.Group {
	backoff := &service.Backoff{Initial: 10 * time.Second, Max: 300 * time.Second, ResetAfter: 600 * time.Second}
	of := func(name string, stage int, kind service.Type, mode service.RestartMode) service.Service {
		s := service.Service{
			Name: name, Stage: stage, Type: kind, Start: []service.Command{{Path: "/x"}},
			Restart: service.Restart{Mode: mode, Backoff: backoff}, Kill: service.Kill{Mode: service.KillMixed}, TimeoutStop: 30 * time.Second,
		}
		return s
	}
	init := service.RestartOnFailure
	if policy == service.RestartNo {
		init = service.RestartNo
	}
	g := service.Group{
		Name: "pod-1", Source: service.Source{Kind: service.FromPod}, Grace: 30 * time.Second, Boot: policy != service.RestartNo,
		Services: []service.Service{
			of("first", 1, service.Oneshot, init), of("side", 2, service.Exec, service.RestartAlways),
			of("second", 3, service.Oneshot, init), of("main", 4, service.Exec, policy),
		},
	}
	g.Services[1].Startup = &service.Probe{TCP: &service.TCPProbe{Port: 1}, InitialDelay: 5 * time.Second}
	return g
}

func (f *fixture) put(g service.Group) {
	f.t.Helper()
	if _, err := f.h.Put(context.Background(), g, "test"); err != nil {
		f.t.Fatal(err)
	}
	if !g.Boot {
		if _, err := f.h.Do(context.Background(), g.Name, "start", "test", false, nil); err != nil {
			f.t.Fatal(err)
		}
	}
	synctest.Wait()
}

func (f *fixture) remove(g service.Group, grace time.Duration) {
	f.t.Helper()
	if err := f.h.Delete(context.Background(), g.Name, "test", &grace); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) service(name string) service.Status {
	f.t.Helper()
	g, err := f.h.Group(context.Background(), "pod-1")
	if err != nil {
		f.t.Fatal(err)
	}
	for _, s := range g.Status.Services {
		if s.Name == name {
			return s
		}
	}
	f.t.Fatalf("no service %s", name)
	return service.Status{}
}

// TestStages: each stage waits for the one before, a sidecar's for its startup
// probe; the end goes the other way round.
func TestStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := stagedPod(service.RestartAlways)
		f.put(g)
		f.expect("start first")
		if s := f.service("main"); !s.Held || s.Reason != "its start waits for second" {
			t.Errorf("main: %+v", s)
		}
		m.crash("pod-1/first", 1)
		f.expect("end pod-1/first, start first") // the first restart is at once
		m.crash("pod-1/first", 1)
		f.expect("end pod-1/first")
		time.Sleep(9 * time.Second)
		f.expect("")
		time.Sleep(2 * time.Second)
		f.expect("start first")
		m.crash("pod-1/first", 0)
		f.expect("end pod-1/first, start side")
		time.Sleep(4 * time.Second)
		f.expect("") // its startup probe has not been asked
		time.Sleep(2 * time.Second)
		f.expect("start second")
		m.crash("pod-1/side", 1)
		f.expect("end pod-1/side, start side")
		m.crash("pod-1/second", 0)
		f.expect("end pod-1/second, start main")
		if s := f.service("main"); s.Held || s.State != service.Running {
			t.Errorf("main: %+v", s)
		}
		m.crash("pod-1/main", 0)
		f.expect("end pod-1/main, start main") // and nothing of the rest
		m.be(func() { m.deaf["pod-1/main"] = true })
		f.remove(g, 20*time.Second)
		f.expect("")
		time.Sleep(19 * time.Second)
		f.expect("")
		m.be(func() { m.deaf["pod-1/side"] = true })
		time.Sleep(time.Second)
		f.expect("end pod-1/main") // killed; the sidecar has two seconds yet
		time.Sleep(3 * time.Second)
		f.expect("end pod-1/side")
		if got := f.state("pod-1"); !strings.Contains(got, "no group") {
			t.Errorf("it is %s", got)
		}
	})
}

// TestStagesEnd: what has been done ends the sidecars, and an init container
// that fails for good ends all.
func TestStagesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := stagedPod(service.RestartNo)
		f.put(g)
		m.crash("pod-1/first", 0)
		time.Sleep(6 * time.Second)
		m.crash("pod-1/second", 0)
		f.expect("start first, end pod-1/first, start side, start second, end pod-1/second, start main")
		m.crash("pod-1/main", 3)
		f.expect("end pod-1/main, end pod-1/side")
		time.Sleep(time.Hour)
		f.expect("")
		f.remove(g, time.Second)

		f.put(g)
		m.crash("pod-1/first", 0)
		time.Sleep(6 * time.Second)
		m.crash("pod-1/second", 1)
		f.expect("start first, end pod-1/first, start side, start second, end pod-1/second, end pod-1/side")
		if s := f.service("main"); s.Held || s.Main != nil {
			t.Errorf("main: %+v", s)
		}
		time.Sleep(time.Hour)
		f.expect("")
	})
}

// TestStagesTakenOver: a legiond that follows another in any stage goes on
// there; a machine that has started anew begins with the first.
func TestStagesTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := stagedPod(service.RestartAlways)
		f := m.host(t)
		f.put(g)
		again := func(boot string) {
			f.leave()
			s := Saved{Groups: map[string]service.Group{g.Name: g}, Wishes: map[string]wish{}, Runs: map[string]record{}}
			r := m.saved["runs pod-1"].(record)
			if boot != "" {
				r.Boot = boot
			}
			s.Runs[g.Name] = r
			s.Wishes[g.Name] = m.saved["wishes pod-1"].(wish)
			f = m.hostWith(t, s)
		}
		again("")
		f.expect("start first")
		m.crash("pod-1/first", 0)
		again("")
		time.Sleep(6 * time.Second)
		again("")
		f.expect("end pod-1/first, start side, start second")
		m.crash("pod-1/second", 0)
		f.expect("end pod-1/second, start main")
		again("")
		f.expect("")
		m.mu.Lock()
		clear(m.procs)
		m.mu.Unlock()
		again("another boot")
		f.expect("start first")
		m.crash("pod-1/first", 0)
		time.Sleep(6 * time.Second)
		m.crash("pod-1/second", 0)
		f.expect("end pod-1/first, start side, start second, end pod-1/second, start main")
		if s := f.service("main"); s.Main.Number != 2 || s.Restarts != 1 {
			t.Errorf("main: %+v", s)
		}
		f.leave()
	})
}

// TestStagesAgain: a start leaves what runs, a restart goes through all stages,
// and a stop without grace waits for none.
func TestStagesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := stagedPod(service.RestartAlways)
		g.Services[1].Startup = nil
		f.put(g)
		m.crash("pod-1/first", 0)
		synctest.Wait()
		m.crash("pod-1/second", 0)
		f.said()
		if err := f.do("pod-1", "start"); err != nil {
			t.Error(err)
		}
		f.expect("")
		if _, err := f.h.Do(context.Background(), "pod-1", "restart", "test", false, nil); err != nil {
			t.Error(err)
		}
		f.expect("end pod-1/main, end pod-1/side, start first")
		m.crash("pod-1/first", 0)
		synctest.Wait()
		m.crash("pod-1/second", 0)
		f.expect("end pod-1/first, start side, start second, end pod-1/second, start main")
		if err := f.do("pod-1", "stop"); err != nil {
			t.Error(err)
		}
		f.expect("end pod-1/main, end pod-1/side")
		f.remove(g, 0)
	})
}

// TestSharedPIDs: a container is started in the PID namespace that another
// service's main process has now.
func TestSharedPIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := stagedPod(service.RestartAlways)
		g.Services = []service.Service{g.Services[1], g.Services[3]}
		g.Services[0].Startup = nil
		g.Services[1].Exec.Container = &service.Container{PIDs: "side"}
		f.put(g)
		f.expect("start side, start main beside pod-1/side")
		m.crash("pod-1/main", 1)
		f.expect("end pod-1/main, start main beside pod-1/side")
		m.crash("pod-1/side", 1)
		f.expect("end pod-1/side, start side")
		m.crash("pod-1/main", 1)
		time.Sleep(11 * time.Second) // its back-off
		f.expect("end pod-1/main, start main beside pod-1/side")
		f.remove(g, 0)
	})
}
