package pods

import (
	"context"
	"errors"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

// TestAlone runs the scripts that kill the node's programs, one after the other,
// when no other script runs.
func TestAlone(t *testing.T) {
	need(t)
	for _, runtime := range []string{hostRuntime, ociRuntime} {
		t.Run(runtime, func(t *testing.T) {
			p := params(runtime)
			p.Dir = "testdata/alone"
			testscript.RunT(sequential{t}, p)
		})
	}
}

// sequential runs scripts one after the other.
type sequential struct{ *testing.T }

func (s sequential) Parallel() {}
func (s sequential) Run(name string, f func(testscript.T)) {
	s.T.Run(name, func(t *testing.T) { f(sequential{t}) })
}
func (s sequential) Verbose() bool { return testing.Verbose() }

// killPrograms kills programs of the fleet, and waits until each runs again:
// strike UNIT…
func killPrograms(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: strike UNIT…")
	}
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	units, before := s.words(args), map[string]uint64{}
	host := hostclient.New(filepath.Join(s.fleet.home(), "host.sock"))
	for _, unit := range units {
		g, err := host.Group(ctx, unit)
		ts.Check(err)
		main := g.Status.Services[0].Main
		if main == nil || main.PID <= 1 {
			ts.Fatalf("%s does not run", unit)
		}
		before[unit] = main.Number
		ts.Check(syscall.Kill(main.PID, syscall.SIGKILL))
	}
	err := host.Watch(ctx, func(e hostapi.Event) error {
		if e.Group == nil || before[e.Name] == 0 {
			return nil
		}
		if st := e.Group.Status.Services[0]; st.State == service.Running && st.Main.Number > before[e.Name] {
			delete(before, e.Name)
		}
		if len(before) == 0 {
			return errFound
		}
		return nil
	})
	if !errors.Is(err, errFound) {
		ts.Fatalf("%v do not run again: %v", before, err)
	}
}

// over waits until a kubectl has ended, however: over NAME
func over(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: over NAME")
	}
	one := of(ts).session(ts, args[0])
	ts.Check(one.await(func() bool { return one.ended }))
	ts.Logf("%s: %q", one.cmd.ProcessState, one.lines)
}
