package host

import (
	"strings"
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

// found is what a legiond finds that takes over now.
func (m *machineFake) found() Saved {
	s := Saved{Groups: map[string]service.Group{}, Wishes: map[string]wish{}, Runs: m.records()}
	for k, v := range m.saved {
		_, name, _ := strings.Cut(k, " ")
		switch v := v.(type) {
		case service.Group:
			s.Groups[name] = v
		case wish:
			s.Wishes[name] = v
		}
	}
	return s
}

// A wish for which there was no room is written when there is.
func TestWishedWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		if _, err := f.h.Put(t.Context(), unitOf("a", service.Dependencies{}), "test"); err != nil {
			t.Fatal(err)
		}
		m.be(func() { m.full = true })
		if err := f.do("a", "start"); err != nil {
			t.Fatal(err)
		}
		m.be(func() { m.full = false })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if w := m.found().Wishes["a"]; !w.Wanted || w.By != "test" {
			t.Errorf("saved: %+v", w)
		}
		if g, err := f.h.Group(t.Context(), "a"); err != nil || len(g.Status.Warnings) > 0 {
			t.Errorf("%v, %v", g.Status.Warnings, err)
		}
	})
}

// A legiond was killed between the definition of a group for boot and the wish
// that it runs.
func TestPutCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("a", service.Dependencies{})
		g.Boot = true
		f := m.hostWith(t, Saved{Groups: map[string]service.Group{"a": g}})
		defer f.leave()
		f.expect("start a")
		if w, ok := m.found().Wishes["a"]; !ok || !w.Wanted {
			t.Errorf("saved: %v %+v", ok, w)
		}
	})
}

// A legiond was killed between the end of a group's definition and that of the
// wish to delete it, which does not count for the next of that name.
func TestDeletionCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.saved["wishes a"] = wish{By: "test", Deleting: true}
		f := m.hostWith(t, m.found())
		if _, err := f.h.Put(t.Context(), unitOf("a", service.Dependencies{}), "test"); err != nil {
			t.Fatal(err)
		}
		f.leave()
		f = m.hostWith(t, m.found())
		defer f.leave()
		if _, err := f.h.Group(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	})
}
