package host

import (
	"testing"
	"testing/synctest"

	"legion.dev/legion/internal/service"
)

// TestRelimit: what runs has its new limits once the unit files are read again,
// and nothing else is touched.
func TestRelimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.lost = []string{"lost"}
		m.units = []service.Group{unitOf("a", service.Dependencies{}), unitOf("down", service.Dependencies{}), unitOf("same", service.Dependencies{})}
		f := m.host(t)
		defer f.leave()
		_, _ = f.do("a", "start"), f.do("same", "start")
		f.said()
		limited := func(name string) service.Group {
			g := unitOf(name, service.Dependencies{})
			g.Services[0].Resources = &service.Limits{TasksMax: &service.Amount{Value: 7}}
			return g
		}
		m.be(func() {
			m.units = []service.Group{limited("a"), limited("down"), unitOf("same", service.Dependencies{Wants: []string{"down"}})}
		})
		if _, err := f.h.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.expect("limit a to 7 tasks")
		g, err := f.h.Group(t.Context(), "a")
		if err != nil || len(g.Status.Services[0].Lost) != 1 {
			t.Errorf("what cannot be limited is not in its status: %+v, %v", g.Status, err)
		}
	})
}
