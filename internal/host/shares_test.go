package host

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// shared tells what a start has in common with other units.
func (m *machineFake) shared(q Request) string {
	text := ""
	if q.Tmp != "" {
		text += " with the /tmp of " + q.Tmp
	}
	if p := m.procs[q.Joined]; p != nil {
		text += " joining " + p.path
	}
	return text
}

func (m *machineFake) RemoveTmp(group, _ string) error {
	m.be(func() { m.say("remove the /tmp of %s", group) })
	return nil
}

func joining(name string, x service.Sandbox, names ...string) service.Group {
	g := unitOf(name, service.Dependencies{JoinsNamespaceOf: names})
	g.Services[0].Exec.Sandbox = &x
	return g
}

// TestJoinsNamespaceOf: units have in common what both ask for, whichever names
// the other and whichever is there first, as long as one of them runs.
func TestJoinsNamespaceOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		both := service.Sandbox{PrivateTmp: true, PrivateNetwork: true}
		m.units = []service.Group{
			joining("a", both), joining("b", both, "a"), joining("c", service.Sandbox{PrivateNetwork: true}, "b", "nothing"),
			joining("d", service.Sandbox{PrivateIPC: true}, "a"), joining("e", both),
		}
		f := m.host(t)
		defer f.leave()
		for _, step := range []struct{ name, verb, want string }{
			{"b", "start", "start b"},
			{"e", "start", "start e"},
			{"a", "start", "start a with the /tmp of b joining b"},
			{"c", "start", "start c joining b"},
			{"d", "start", "start d"},
			{"b", "stop", "end b"},
			{"b", "start", "start b joining a"},
			{"b", "stop", "end b"},
			{"a", "stop", "end a, remove the /tmp of b"},
			{"a", "start", "start a joining c"},
			{"b", "start", "start b with the /tmp of a joining a"},
			{"b", "stop", "end b"},
			{"a", "stop", "end a, remove the /tmp of a"},
			{"e", "stop", "end e, remove the /tmp of e"},
		} {
			if err := f.do(step.name, step.verb); err != nil {
				t.Fatal(err)
			}
			f.expect(step.want)
		}
	})
}

// TestJoinsWhatStarts: the process of a start under way is waited for, and a
// legiond that takes over knows whose /tmp a unit sees.
func TestJoinsWhatStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		both := service.Sandbox{PrivateTmp: true, PrivateNetwork: true}
		m.units = []service.Group{joining("a", both), joining("b", both, "a")}
		m.slow["a"] = time.Second
		f := m.host(t)
		if _, err := f.h.Do(context.Background(), "a", "start", "test", false, nil); err != nil {
			t.Fatal(err)
		}
		if err := f.do("b", "start"); err != nil {
			t.Fatal(err)
		}
		f.expect("start a, start b with the /tmp of a joining a")
		f.leave()
		f = m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		if err := f.do("a", "stop"); err != nil {
			t.Fatal(err)
		}
		f.expect("end a")
		if err := f.do("b", "stop"); err != nil {
			t.Fatal(err)
		}
		f.expect("end b, remove the /tmp of a")
	})
}
