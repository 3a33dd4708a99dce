package host

import (
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// What could not be written is written when there is room, though nothing else
// happens to the service.
func TestSavedWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.units = []service.Group{unitOf("a", service.Dependencies{})}
		f := m.host(t)
		defer f.leave()
		full := func(full bool) {
			m.mu.Lock()
			m.full = full
			m.mu.Unlock()
		}
		warnings := func() int {
			g, err := f.h.Group(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			return len(g.Status.Warnings)
		}
		full(true)
		if err := f.do("a", "start"); err != nil {
			t.Fatal(err)
		}
		if got := f.state("a"); got != "running" {
			t.Fatalf("on a full disk a is %s", got)
		}
		time.Sleep(time.Minute)
		if warnings() == 0 {
			t.Error("nothing is said of what could not be written")
		}
		full(false)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		r, _ := m.saved["runs a"].(record)
		if in := r.Instances["a"]; in.State != service.Running || in.Main == nil || in.Main.PID == 0 {
			t.Errorf("saved: %+v", in)
		}
		if n := warnings(); n > 0 {
			t.Errorf("%d warnings are left", n)
		}
	})
}
