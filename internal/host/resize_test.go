package host

import (
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// TestResize: other limits of a pod are set for what runs; what has to be begun
// anew for them is, once; a legiond that takes over makes sure of them.
func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		of := func(quota uint64, fixed string) service.Group {
			g := stagedPod(service.RestartAlways)
			g.Services = g.Services[3:]
			g.Services[0].Resources, g.Services[0].Fixed = &service.Limits{CPUQuota: quota}, fixed
			g.Resources = &service.Limits{CPUQuota: quota + 1}
			return g
		}
		f.put(of(100, "a"))
		f.expect("start main")
		f.put(of(200, "a"))
		f.expect("limit pod-1 to 201 of the processor, limit pod-1/main to 200 of the processor, limit pod-1 to 201 of the processor")
		if s := f.service("main"); s.Bounds == nil || s.Bounds.CPUQuota != 200 || len(s.Lost) > 0 {
			t.Errorf("main: %+v", s)
		}
		m.be(func() { m.lost = []string{"CPUQuota=: no"} })
		f.put(of(300, "a"))
		f.expect("limit pod-1 to 301 of the processor, limit pod-1/main to 300 of the processor, limit pod-1 to 301 of the processor")
		if s := f.service("main"); s.Bounds.CPUQuota != 300 || len(s.Lost) == 0 {
			t.Errorf("main: %+v", s)
		}
		f.put(of(400, "b"))
		time.Sleep(time.Second)
		f.expect("end pod-1/main, start main")
		if s := f.service("main"); s.Bounds.CPUQuota != 400 || s.Fixed != "b" {
			t.Errorf("main: %+v", s)
		}
		f.leave()
		saved := Saved{Groups: map[string]service.Group{"pod-1": of(400, "b")}, Runs: m.records()}
		f = m.hostWith(t, saved)
		f.expect("limit pod-1 to 401 of the processor, limit pod-1/main to 400 of the processor, limit pod-1 to 401 of the processor")
		f.leave()
		// Put, and then the end before it was done.
		saved.Groups["pod-1"] = of(400, "c")
		f = m.hostWith(t, saved)
		defer f.leave()
		time.Sleep(time.Second)
		f.expect("end pod-1/main, start main")
	})
}
