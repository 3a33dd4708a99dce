package host

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

func TestPossible(t *testing.T) {
	for _, c := range []struct {
		action service.Action
		at     Place
		want   service.Action
	}{
		{service.ExitAction, "", service.ExitAction},
		{service.ExitForce, "", service.ExitForce},
		{service.Reboot, "", ""},
		{service.PowerOffImmediate, "", ""},
		{service.HaltForce, "", ""},
		{service.ExitAction, OfContainer, service.ExitAction},
		{service.PowerOff, OfContainer, service.ExitAction},
		{service.HaltImmediate, OfContainer, service.ExitForce},
		{service.RebootForce, OfContainer, service.RebootForce},
		{service.ExitAction, OfMachine, service.PowerOff},
		{service.ExitForce, OfMachine, service.PowerOffForce},
		{service.HaltImmediate, OfMachine, service.HaltImmediate},
	} {
		got, err := possible(c.action, c.at)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s at %q: %q, %v; want %q", c.action, c.at, got, err, c.want)
		}
	}
}

// acting is a unit with actions beside another that takes a second to stop.
func acting(a service.Actions) []service.Group {
	g := unitOf("a", service.Dependencies{})
	g.Actions = a
	return []service.Group{g, unitOf("other", service.Dependencies{})}
}

func TestActions(t *testing.T) {
	seven := 7
	crash := func(code int) func(*fixture) { return func(f *fixture) { f.m.crash("a", code) } }
	for name, c := range map[string]struct {
		actions service.Actions
		at      Place
		run     func(*fixture)
		said    string
		ended   bool
		code    int
		after   Ending
		status  string // of a
	}{
		"exits as it did":        {actions: service.Actions{Failure: service.ExitAction}, run: crash(3), said: "end a, end other", ended: true, code: 3},
		"exits with a status":    {actions: service.Actions{Failure: service.ExitAction, FailureStatus: &seven}, run: crash(3), said: "end a, end other", ended: true, code: 7},
		"exits well":             {actions: service.Actions{Success: service.ExitAction, Failure: service.Reboot}, run: crash(0), said: "end a, end other", ended: true},
		"not on success":         {actions: service.Actions{Failure: service.ExitAction}, run: crash(0), said: "end a"},
		"exits by force":         {actions: service.Actions{Failure: service.ExitForce}, run: crash(1), said: "end a, end other", ended: true, code: 1},
		"cannot reboot":          {actions: service.Actions{Failure: service.Reboot}, run: crash(1), said: "end a", status: "FailureAction=reboot is not carried out: legiond is not process 1"},
		"reboots the machine":    {actions: service.Actions{Failure: service.Reboot, RebootArgument: "x"}, at: OfMachine, run: crash(1), said: "end a, end other", ended: true, after: Ending{service.Reboot, "x"}},
		"at once":                {actions: service.Actions{Failure: service.PowerOffImmediate}, at: OfMachine, run: crash(1), said: "end a", ended: true, after: Ending{Action: service.PowerOffImmediate}},
		"turns a container off":  {actions: service.Actions{Failure: service.PowerOff}, at: OfContainer, run: crash(1), said: "end a, end other", ended: true},
		"a stop by hand is well": {actions: service.Actions{Success: service.Halt}, at: OfMachine, run: func(f *fixture) { _ = f.do("a", "stop") }, said: "end a, end other", ended: true, after: Ending{Action: service.Halt}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newFake()
				m.units = acting(c.actions)
				o := m.options(Saved{})
				o.Place = c.at
				f := m.hostOf(t, o)
				defer f.leave()
				_ = f.do("a", "start")
				_ = f.do("other", "start")
				f.said()
				if c.status != "" {
					c.run(f)
					synctest.Wait()
					g, err := f.h.Group(t.Context(), "a")
					if err != nil || len(g.Status.Warnings) == 0 || !strings.Contains(g.Status.Warnings[0].Text, c.status) {
						t.Errorf("its status: %v, %v", g.Status, err)
					}
				} else {
					c.run(f)
				}
				f.expect(c.said)
				code, reason := f.h.ExitCode()
				if f.h.ended != c.ended || code != c.code || (reason != "") != (c.ended && c.after.Action == "") || f.h.Ending() != c.after {
					t.Errorf("ended %v, code %d (%q), after %+v", f.h.ended, code, reason, f.h.Ending())
				}
			})
		})
	}
}

func TestActionOfLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("a", service.Dependencies{})
		g.StartLimit = service.StartLimit{Interval: time.Minute, Burst: 1}
		g.Actions.StartLimit = service.ExitAction
		m.units = []service.Group{g}
		f := m.host(t)
		defer f.leave()
		_ = f.do("a", "start")
		_ = f.do("a", "stop")
		if f.h.ended {
			t.Fatal("ended before the limit")
		}
		_ = f.do("a", "start")
		if code, reason := f.h.ExitCode(); !f.h.ended || code != 0 || reason != "StartLimitAction=exit of a" {
			t.Errorf("%v, %d, %q", f.h.ended, code, reason)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("slow", service.Dependencies{})
		g.JobTimeout, g.Actions.JobTimeout = time.Second, service.ExitAction
		m.units = []service.Group{g}
		m.slow["slow"] = 5 * time.Second
		f := m.host(t)
		defer f.leave()
		if err := f.do("slow", "start"); err == nil || !strings.Contains(err.Error(), "JobTimeoutSec=") {
			t.Error(err)
		}
		time.Sleep(10 * time.Second) // virtual
		synctest.Wait()
		if _, reason := f.h.ExitCode(); !f.h.ended || reason != "JobTimeoutAction=exit of slow" {
			t.Errorf("%v, %q", f.h.ended, reason)
		}
		f.expect("start slow, end slow")
	})
}

func TestJobModes(t *testing.T) {
	target := func(name string, d service.Dependencies) service.Group {
		return service.Group{Name: name, Source: service.Source{Kind: service.FromTarget}, Deps: d}
	}
	in := func(f *fixture, mode service.JobMode, name, verb string) error {
		_, err := f.h.doVerb(f.t.Context(), name, verb, job{by: "test", mode: mode}, true)
		synctest.Wait()
		return err
	}
	units := func() []service.Group {
		rescue := target("rescue.target", service.Dependencies{Wants: []string{"shell"}})
		rescue.AllowIsolate = true
		deaf := unitOf("deaf", service.Dependencies{})
		stays := unitOf("stays", service.Dependencies{})
		stays.IgnoreOnIsolate = true
		alarm := unitOf("alarm", service.Dependencies{OnFailure: []string{"rescue.target"}})
		alarm.OnFailureMode = service.JobIsolate
		return []service.Group{
			rescue, target("multi.target", service.Dependencies{Wants: []string{"app"}}), stays, deaf, alarm,
			unitOf("app", service.Dependencies{Requires: []string{"db"}, After: []string{"db"}}), unitOf("db", service.Dependencies{}), unitOf("shell", service.Dependencies{After: []string{"db"}}),
		}
	}
	for name, c := range map[string]struct {
		run  func(*fixture)
		said string
	}{
		"isolate": {func(f *fixture) {
			_, _ = f.do("stays", "start"), f.do("app", "start")
			f.said()
			if err := in(f, service.JobIsolate, "rescue.target", "start"); err != nil {
				f.t.Error(err)
			}
			if err := in(f, service.JobIsolate, "multi.target", "start"); err == nil || !strings.Contains(err.Error(), "AllowIsolate=") {
				f.t.Error(err)
			}
			if s := f.state("stays"); s != "running" {
				f.t.Errorf("what ignores it is %s", s)
			}
		}, "end app, end db, start shell"},
		"isolated on failure": {func(f *fixture) {
			_, _ = f.do("alarm", "start"), f.do("db", "start")
			f.said()
			f.m.crash("alarm", 1)
		}, "end alarm, end db, start shell"},
		"without what it needs": {func(f *fixture) { _ = in(f, service.JobIgnoreRequirements, "app", "start") }, "start app"},
		"fail": {func(f *fixture) {
			f.m.be(func() { f.m.deaf["deaf"] = true })
			_ = f.do("deaf", "start")
			if _, err := f.h.Do(f.t.Context(), "deaf", "stop", "test", false, nil); err != nil {
				f.t.Error(err)
			}
			if err := in(f, service.JobFail, "deaf", "start"); err == nil || !strings.Contains(err.Error(), "under way") {
				f.t.Error(err)
			}
			time.Sleep(time.Minute) // virtual
		}, "start deaf, end deaf"},
		"irreversible": {func(f *fixture) {
			f.m.be(func() { f.m.deaf["deaf"] = true })
			_ = f.do("deaf", "start")
			if _, err := f.h.doVerb(f.t.Context(), "deaf", "stop", job{mode: service.JobReplaceIrreversibly}, false); err != nil {
				f.t.Error(err)
			}
			if err := in(f, "", "deaf", "start"); err == nil {
				f.t.Error("the stop was replaced")
			}
			time.Sleep(time.Minute) // virtual
		}, "start deaf, end deaf"},
		"flush": {func(f *fixture) {
			f.m.be(func() { f.m.slow["db"] = time.Minute })
			failed := make(chan error, 1)
			go func() { _, err := f.h.Do(f.t.Context(), "app", "start", "test", true, nil); failed <- err }()
			synctest.Wait()
			_ = in(f, service.JobFlush, "shell", "start")
			if err := <-failed; err == nil || !strings.Contains(err.Error(), "cancelled") {
				f.t.Error(err)
			}
			time.Sleep(2 * time.Minute) // virtual; what had begun goes on
		}, "start shell, start db"},
		"in no order": {func(f *fixture) {
			f.m.be(func() { f.m.slow["db"] = time.Minute })
			if _, err := f.h.Do(f.t.Context(), "db", "start", "test", false, nil); err != nil {
				f.t.Error(err)
			}
			_ = in(f, service.JobIgnoreDependencies, "app", "start")
			time.Sleep(2 * time.Minute) // virtual
		}, "start app, start db"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newFake()
				m.units = units()
				f := m.host(t)
				defer f.leave()
				c.run(f)
				f.expect(c.said)
			})
		})
	}
}
