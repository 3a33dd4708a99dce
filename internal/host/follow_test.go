package host

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// restarting gives a unit an automatic restart after a second.
func restarting(g service.Group) service.Group {
	g.Services[0].Restart = service.Restart{Mode: service.RestartAlways, Delay: time.Second}
	return g
}

func reloading(g service.Group) service.Group {
	g.Services[0].Reload = []service.Command{{Path: "/reload"}}
	return g
}

func TestFollow(t *testing.T) {
	for name, c := range map[string]struct {
		units []service.Group
		run   func(f *fixture)
		said  string
	}{
		"on failure": {
			units: []service.Group{unitOf("a", service.Dependencies{OnFailure: []string{"alarm", "nobody"}, OnSuccess: []string{"cheer"}}), unitOf("alarm", service.Dependencies{}), unitOf("cheer", service.Dependencies{})},
			run:   func(f *fixture) { _ = f.do("a", "start"); f.m.crash("a", 1) },
			said:  "start a, end a, start alarm",
		},
		"on success": {
			units: []service.Group{unitOf("a", service.Dependencies{OnFailure: []string{"alarm"}, OnSuccess: []string{"cheer"}}), unitOf("alarm", service.Dependencies{}), unitOf("cheer", service.Dependencies{})},
			run:   func(f *fixture) { _ = f.do("a", "start"); f.m.crash("a", 0) },
			said:  "start a, end a, start cheer",
		},
		"upheld": {
			units: []service.Group{unitOf("a", service.Dependencies{Upholds: []string{"b"}}), unitOf("b", service.Dependencies{})},
			run: func(f *fixture) {
				_ = f.do("a", "start")
				f.said()
				f.m.crash("b", 1)
				synctest.Wait()
				_ = f.do("a", "stop")
				f.m.crash("b", 1)
			},
			said: "end b, start b, end a, end b",
		},
		"stops when unneeded": {
			units: []service.Group{
				unitOf("a", service.Dependencies{Wants: []string{"b"}}), unitOf("c", service.Dependencies{Requires: []string{"b"}, After: []string{"b"}}),
				func() service.Group { g := unitOf("b", service.Dependencies{}); g.StopWhenUnneeded = true; return g }(),
			},
			run: func(f *fixture) {
				_ = f.do("a", "start")
				_ = f.do("c", "start")
				f.said()
				_ = f.do("a", "stop")
				_ = f.do("c", "stop")
			},
			said: "end a, end c, end b",
		},
		"stops with": {
			units: []service.Group{unitOf("a", service.Dependencies{PropagatesStopTo: []string{"b"}}), unitOf("b", service.Dependencies{}), unitOf("c", service.Dependencies{StopPropagatedFrom: []string{"b"}, After: []string{"b"}})},
			run: func(f *fixture) {
				_ = f.do("c", "start")
				_ = f.do("b", "start")
				_ = f.do("a", "start")
				f.said()
				_ = f.do("a", "stop")
			},
			said: "end a, end c, end b",
		},
		"reloads with": {
			units: []service.Group{unitOf("a", service.Dependencies{PropagatesReloadTo: []string{"b"}}), reloading(unitOf("b", service.Dependencies{}))},
			run: func(f *fixture) {
				_ = f.do("b", "start")
				_ = f.do("a", "start")
				f.said()
				if err := f.do("a", "reload"); err != nil {
					f.t.Error(err)
				}
			},
			said: "start b",
		},
		"recovers with what it requires": {
			units: []service.Group{
				unitOf("app", service.Dependencies{Requires: []string{"db"}, After: []string{"db"}}), restarting(unitOf("db", service.Dependencies{})),
				func() service.Group {
					g := unitOf("shy", service.Dependencies{Requires: []string{"db"}, After: []string{"db"}})
					g.NoRecover = true
					return g
				}(),
			},
			run: func(f *fixture) {
				f.m.broken["db"] = true
				for _, n := range []string{"app", "shy"} {
					if err := f.do(n, "start"); err == nil || !strings.Contains(err.Error(), "which it requires, did not start") {
						f.t.Errorf("%s: %v", n, err)
					}
				}
				f.m.mu.Lock()
				f.m.broken["db"] = false
				f.m.mu.Unlock()
				time.Sleep(5 * time.Second) // virtual
			},
			said: "start db, start app",
		},
		"recovers with what it is bound to, unless it was stopped": {
			units: []service.Group{unitOf("app", service.Dependencies{BindsTo: []string{"db"}, After: []string{"db"}}), unitOf("db", service.Dependencies{})},
			run: func(f *fixture) {
				_ = f.do("app", "start")
				f.m.crash("db", 1)
				synctest.Wait()
				_ = f.do("db", "start")
				_ = f.do("app", "stop")
				f.m.crash("db", 1)
				synctest.Wait()
				_ = f.do("db", "start")
			},
			said: "start db, start app, end db, end app, start db, start app, end app, end db, start db",
		},
		"an instance on demand": {
			run: func(f *fixture) {
				f.m.templates = []service.Group{unitOf("foo@x.service", service.Dependencies{Wants: []string{"bar@x.service"}}), unitOf("bar@x.service", service.Dependencies{After: []string{"foo@x.service"}})}
				if err := f.do("foo@x.service", "start"); err != nil {
					f.t.Error(err)
				}
				if _, err := f.h.Reload(f.t.Context()); err != nil {
					f.t.Error(err)
				}
				if s := f.state("foo@x.service"); s != "running" {
					f.t.Errorf("after a reload it is %s", s)
				}
				if err := f.do("foo@y.service", "start"); err == nil || !strings.Contains(err.Error(), "there is no foo@y.service") {
					f.t.Errorf("another: %v", err)
				}
			},
			said: "start foo@x.service, start bar@x.service",
		},
		"a job takes too long": {
			units: []service.Group{func() service.Group {
				g := unitOf("a", service.Dependencies{After: []string{"b"}, Wants: []string{"b"}})
				g.JobTimeout = time.Second
				return g
			}(), unitOf("b", service.Dependencies{})},
			run: func(f *fixture) {
				f.m.slow["b"] = time.Minute
				if err := f.do("a", "start"); err == nil || !strings.Contains(err.Error(), "not done within 1s") {
					f.t.Error(err)
				}
				time.Sleep(2 * time.Minute)
			},
			said: "start b",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newFake()
				m.units = c.units
				f := m.host(t)
				defer f.leave()
				c.run(f)
				if name == "reloads with" {
					synctest.Wait()
					f.expect("start b")
					return
				}
				f.expect(c.said)
			})
		})
	}
}

// TestRestartWay: with RestartMode=normal others see the end of what restarts by
// itself, and else not.
func TestRestartWay(t *testing.T) {
	for way, said := range map[service.RestartWay]string{
		"":                    "end a, start a",
		service.RestartDirect: "end a, start a",
		service.RestartNormal: "end a, end bound, start alarm, start a, start bound",
		service.RestartDebug:  "end a, end bound, start alarm, start a in debug mode, start bound",
	} {
		synctest.Test(t, func(t *testing.T) {
			m := newFake()
			a := restarting(unitOf("a", service.Dependencies{OnFailure: []string{"alarm"}}))
			a.Services[0].Restart.Way = way
			m.units = []service.Group{a, unitOf("bound", service.Dependencies{BindsTo: []string{"a"}, After: []string{"a"}}), unitOf("alarm", service.Dependencies{After: []string{"bound"}})}
			f := m.host(t)
			defer f.leave()
			_ = f.do("bound", "start")
			f.said()
			f.m.crash("a", 1)
			time.Sleep(5 * time.Second) // virtual
			f.expect(said)
		})
	}
}
