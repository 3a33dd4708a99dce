package host

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// TestRequestsAsHooks: a hook's request takes the place of a process: the
// service has started once it is answered, fails with it, and stops no later
// than it may.
func TestRequestsAsHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		answer, slow := "", 5*time.Second
		m.probe = func(ctx context.Context, q *service.Probe) (bool, string) {
			var answers string
			var wait time.Duration
			m.be(func() { answers, wait = answer, slow })
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				m.be(func() { m.say("%s given up", q.HTTP.Path) })
			}
			return answers == "", answers
		}
		hook := func(path string) []service.Command {
			return []service.Command{{Path: "GET h:1" + path, HTTP: &service.HTTPProbe{Path: path}, IgnoreFailure: path == "/bye"}}
		}
		g := service.Group{
			Name: "pod-1", Source: service.Source{Kind: service.FromPod}, Boot: true, Grace: 10 * time.Second,
			Services: []service.Service{{
				Name: "main", Type: service.Exec, Start: []service.Command{{Path: "/x"}}, StartPost: hook("/up"), Stop: hook("/bye"), StopAlive: true,
				Restart: service.Restart{Mode: service.RestartAlways, Delay: time.Minute},
			}},
		}
		f := m.host(t)
		defer f.leave()
		f.put(g)
		f.expect("start main")
		if s := f.service("main"); s.State != service.StartPost || s.Ready {
			t.Errorf("it is %+v", s)
		}
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if s := f.service("main"); s.State != service.Running {
			t.Errorf("it is %+v", s)
		}
		m.crash("pod-1/main", 1) // no preStop: it has ended
		f.expect("end pod-1/main")

		m.be(func() { answer = "connection refused" })
		time.Sleep(66 * time.Second)
		f.expect("start main, end pod-1/main")
		if s := f.service("main"); s.State != service.AutoRestart || !strings.Contains(s.Reason, "hook GET h:1/up failed: connection refused") {
			t.Errorf("it is %+v", s)
		}

		m.be(func() { answer, slow = "", time.Second })
		time.Sleep(66 * time.Second)
		f.expect("start main")
		m.be(func() { slow = time.Hour })
		f.remove(g, 10*time.Second)
		time.Sleep(9 * time.Second)
		f.expect("")
		time.Sleep(2 * time.Second)
		// At the same moment, in no order.
		if got := f.said(); !strings.Contains(got, "/bye given up") || !strings.Contains(got, "end pod-1/main") {
			t.Errorf("got %s", got)
		}
	})
}
