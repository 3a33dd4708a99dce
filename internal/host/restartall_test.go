package host

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// callingPod is stagedPod without probes, whose main and side call for all by 42.
func callingPod() service.Group {
	g := stagedPod(service.RestartNo)
	g.Boot = true
	g.Services[1].Startup = nil
	for _, i := range []int{1, 3} {
		g.Services[i].Restart.All = service.ExitSet{Codes: []int{42}}
	}
	return g
}

// through lets the init containers end well.
func (f *fixture) through() {
	f.t.Helper()
	for _, name := range []string{"first", "second"} {
		synctest.Wait()
		f.m.crash("pod-1/"+name, 0)
	}
}

// TestRestartAll: after such an end all start again from the first stage, once
// the last of them has been killed; the next time after a back-off.
func TestRestartAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := callingPod()
		f.put(g)
		f.through()
		f.expect("start first, end pod-1/first, start side, start second, end pod-1/second, start main")
		m.be(func() { m.deaf["pod-1/side"] = true })
		m.crash("pod-1/main", 42)
		f.expect("end pod-1/main, end pod-1/side, start first")
		if s := f.service("main"); !s.Held || s.Reason != "main exited with status 42, and by its rule all start again" || s.Again != s.Reason {
			t.Errorf("main: %+v", s)
		}
		f.through()
		f.expect("end pod-1/first, start side, start second, end pod-1/second, start main")
		for _, name := range []string{"first", "side", "second", "main"} {
			if s := f.service(name); s.Again != "" || s.Restarts != 1 {
				t.Errorf("%s: %+v", name, s)
			}
		}

		m.crash("pod-1/main", 42)
		f.expect("end pod-1/main")
		time.Sleep(11 * time.Second)
		f.expect("end pod-1/side, start first")
		f.through()
		f.said()

		m.crash("pod-1/side", 42) // another one calls: its own first time
		f.expect("end pod-1/side, end pod-1/main, start first")
		m.crash("pod-1/first", 1) // and one that fails for good meanwhile ends it
		f.expect("end pod-1/first")
		if s := f.service("main"); s.Held || s.Again != "" {
			t.Errorf("main: %+v", s)
		}
		f.remove(g, 0)
	})
}

// TestRestartAllOfOneStage: without an order among them, too, none starts before
// the last has ended; what holds a PID namespace and what was added stay.
func TestRestartAllOfOneStage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := callingPod()
		hold, one, two, added := g.Services[1], g.Services[3], g.Services[3], g.Services[3]
		hold.Name, one.Name, two.Name, added.Name = "hold", "one", "two", "added"
		hold.Restart.All = service.ExitSet{}
		hold.Stage, one.Stage, two.Stage, added.Stage = 0, 1, 1, 1
		one.Exec.Container, two.Exec.Container = &service.Container{PIDs: "hold"}, &service.Container{PIDs: "hold"}
		added.Ephemeral, added.Restart = true, service.Restart{}
		g.Services = []service.Service{hold, one, two, added}
		f.put(g)
		sorted := func(want string) {
			t.Helper()
			said := strings.Split(f.said(), ", ")
			slices.Sort(said)
			if got := strings.Join(said, ", "); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
		sorted("start added, start hold, start one beside pod-1/hold, start two beside pod-1/hold")
		m.be(func() { m.slow["one"] = time.Second })
		m.crash("pod-1/one", 42)
		sorted("end pod-1/one, end pod-1/two, start two beside pod-1/hold")
		time.Sleep(time.Second)
		sorted("start one beside pod-1/hold")
		f.remove(g, 0)
	})
}

// TestRestartAllTakenOver: a legiond that follows another goes on with it,
// wherever that one came to its end; a stop takes it back.
func TestRestartAllTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		g := callingPod()
		f.put(g)
		f.through()
		f.said()
		r := m.saved["runs pod-1"].(record)
		again := func(r record) {
			f.leave()
			f = m.hostWith(t, Saved{
				Groups: map[string]service.Group{g.Name: g}, Runs: map[string]record{g.Name: r}, Wishes: map[string]wish{g.Name: m.saved["wishes pod-1"].(wish)},
			})
		}
		m.crash("pod-1/main", 42)
		f.expect("end pod-1/main, end pod-1/side, start first")

		// As the record was when main had ended and nothing was done about it.
		in := m.saved["runs pod-1"].(record).Instances["main"]
		in.Stopping, r.Held = false, nil
		r.Instances["main"], r.Instances["first"] = in, m.saved["runs pod-1"].(record).Instances["first"]
		again(r)
		if said := f.said(); !strings.HasSuffix(said, "start first") {
			t.Errorf("a legiond that knows of the end alone: %s", said)
		}

		again(m.saved["runs pod-1"].(record))
		f.expect("")
		f.through()
		f.expect("end pod-1/first, start side, start second, end pod-1/second, start main")

		m.crash("pod-1/side", 42)
		time.Sleep(11 * time.Second) // it was run again once, as its end was not seen
		f.expect("end pod-1/side, end pod-1/main, start first")
		if err := f.do("pod-1", "stop"); err != nil {
			t.Error(err)
		}
		f.expect("end pod-1/first")
		f.leave()
	})
}
