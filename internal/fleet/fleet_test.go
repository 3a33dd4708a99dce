package fleet

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitdir"
)

// newFleet is a fleet in a directory of the test's, with programs that are
// there and do nothing.
func newFleet(t *testing.T, dir string) *Fleet {
	t.Helper()
	bin := t.TempDir()
	for _, name := range []string{"legion", "legiond", "legion-agent", "legion-server", "examples/collector"} {
		path := filepath.Join(bin, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var out, err bytes.Buffer
	f := &Fleet{Dir: dir, Bin: bin, Out: &out, Progress: NewProgress(&err, false)}
	t.Cleanup(f.Progress.Close)
	return f
}

// TestUnitsReadBack writes the units of a fleet in a directory with an awkward
// name and reads them as legiond does.
func TestUnitsReadBack(t *testing.T) {
	for _, namespaced := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), `a b%c$d"e\f`)
		f := newFleet(t, dir)
		f.state = State{Port: 7000, Subnet: netip.MustParsePrefix("10.9.8.0/24"), Namespaced: namespaced}
		for _, name := range []string{"n1", "n2"} {
			n, err := f.addNode(name)
			if err != nil {
				t.Fatal(err)
			}
			if name == "n1" { // the other has not joined yet
				if err := writeFile(f.tokenFile(n), []byte("LEGION_TOKEN=x\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := f.writeUnits(); err != nil {
			t.Fatal(err)
		}
		groups, warnings := unitdir.Load([]string{f.path("units")}, unitdir.Options{Boot: bootTarget})
		for _, w := range warnings {
			t.Errorf("%s:%d: %s", w.File, w.Line, w.Text)
		}
		byName := map[string]service.Group{}
		for _, g := range groups {
			byName[g.Name] = g
			for _, w := range g.Warnings {
				t.Errorf("%s:%d: %s", w.File, w.Line, w.Text)
			}
		}
		argv := func(unit string) []string {
			if len(byName[unit].Services) != 1 || len(byName[unit].Services[0].Start) != 1 {
				t.Fatalf("%s: not one command: %+v", unit, byName[unit])
			}
			var args []string
			for _, a := range byName[unit].Services[0].Start[0].Argv {
				args = append(args, strings.ReplaceAll(a, "$$", "$")) // a variable's own escape stays to the start
			}
			return args
		}
		want := []string{f.program("legiond"), "--dir", filepath.Join(dir, "nodes", "n2"), "--units", filepath.Join(dir, "nodes", "n2", "units")}
		if got := argv("legiond-n2.service"); !slices.Equal(got, want) {
			t.Errorf("legiond-n2: got %q, want %q", got, want)
		}
		url := "https://127.0.0.1:7000"
		if namespaced {
			url = "https://10.9.8.1:7000"
		}
		if got := argv("legion-agent-n2.service"); !slices.Contains(got, url) || !slices.Contains(got, "10.9.8.12") {
			t.Errorf("legion-agent-n2: %q misses %s or its address", got, url)
		}
		if got := slices.Contains(argv(serverUnit), "--listen-netns"); got != namespaced {
			t.Errorf("the server listens in the hub: %v, want %v", got, namespaced)
		}
		for _, unit := range []string{serverUnit, "legiond-n1.service", "legion-agent-n1.service", collectorUnit} {
			if l := byName[unit].StartLimit; l.Interval != 0 {
				t.Errorf("%s is given up after %d starts within %s", unit, l.Burst, l.Interval)
			}
		}
		for _, unit := range []string{"legiond-n1.service", "legion-agent-n1.service", collectorUnit} {
			if got := byName[unit].Services[0].Exec.NetworkNamespacePath != ""; got != namespaced {
				t.Errorf("%s has a network of its own: %v, want %v", unit, got, namespaced)
			}
		}
		if s := byName["legiond-n1.service"].Services[0]; s.Kill.Mode != service.KillProcess || !s.Exec.Delegate || s.Type != service.Notify {
			t.Errorf("legiond-n1: %+v", s)
		}
		wants := byName[bootTarget].Deps.Wants
		if !slices.Contains(wants, "legion-agent-n1.service") || slices.Contains(wants, "legion-agent-n2.service") {
			t.Errorf("the target wants %q; want the agents that have joined", wants)
		}
	}
}

func TestUnitsOfRemovedNodesGo(t *testing.T) {
	f := newFleet(t, t.TempDir())
	f.state = State{Port: 7000, Subnet: netip.MustParsePrefix("127.77.0.0/24")}
	if _, err := f.addNode("n1"); err != nil {
		t.Fatal(err)
	}
	if err := f.writeUnits(); err != nil {
		t.Fatal(err)
	}
	mine := f.path("units", "mine.service")
	if err := os.WriteFile(mine, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	drop := f.path("units", "legiond-n1.service.d", "mine.conf")
	if err := writeFile(drop, []byte("[Service]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.state.Nodes = nil
	if err := f.writeUnits(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.path("units", "legiond-n1.service")); err == nil {
		t.Error("the unit of a removed node is still there")
	}
	for _, path := range []string{mine, drop} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the user's %s was removed", path)
		}
	}
}

func TestNodeNumbers(t *testing.T) {
	f := newFleet(t, t.TempDir())
	for _, name := range []string{"n1", "n2", "n3"} {
		if _, err := f.addNode(name); err != nil {
			t.Fatal(err)
		}
	}
	f.state.Nodes = slices.DeleteFunc(f.state.Nodes, func(n Node) bool { return n.Name == "n2" })
	if n, err := f.addNode("edge-7"); err != nil || n.Index != 2 {
		t.Errorf("got %+v, %v, want the number of the removed node", n, err)
	}
	if err := f.plan(UpOptions{Nodes: 4}, true); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range f.state.Nodes {
		names = append(names, n.Name)
	}
	if want := []string{"n1", "n3", "edge-7", "n2"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q: those that are there count", names, want)
	}
	for _, bad := range []string{"", "N1", "-a", "a-", "a.b", "a/b", strings.Repeat("a", 64)} {
		if _, err := f.addNode(bad); err == nil {
			t.Errorf("%q was taken as a node's name", bad)
		}
	}
}

func TestStateIsKept(t *testing.T) {
	dir := t.TempDir()
	f := newFleet(t, dir)
	f.state = State{Port: 7000, Subnet: netip.MustParsePrefix("127.77.3.0/24"), Nodes: []Node{{"n1", 1}}}
	if err := f.save(); err != nil {
		t.Fatal(err)
	}
	again := newFleet(t, dir)
	if err := again.open(); err != nil || again.state.Port != 7000 || again.nodeAddr(again.state.Nodes[0]).String() != "127.77.3.11" {
		t.Errorf("got %+v, %v", again.state, err)
	}
}

func TestOneAtATime(t *testing.T) {
	f := newFleet(t, t.TempDir())
	unlock, err := f.lock("up")
	if err != nil {
		t.Fatal(err)
	}
	_, err = newFleet(t, f.Dir).lock("down")
	if err == nil || !strings.Contains(err.Error(), "up (pid "+strconv.Itoa(os.Getpid())+")") {
		t.Errorf("got %v, want who holds the directory", err)
	}
	unlock()
	unlock, err = f.lock("down")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	f := newFleet(t, t.TempDir())
	err = f.choosePort(port)
	if err == nil {
		t.Fatal("took a port that is in use")
	}
	for _, word := range []string{strconv.Itoa(port), "(pid " + strconv.Itoa(os.Getpid()) + ")", "--port"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v: does not say %s", err, word)
		}
	}
	f.state.Port = 0
	if err := f.choosePort(0); err != nil || f.state.Port == port || f.state.Port == 0 {
		t.Errorf("got port %d, %v", f.state.Port, err)
	}
}

func TestUpRefusesInWords(t *testing.T) {
	f := newFleet(t, t.TempDir())
	if err := os.Remove(f.program("legion-agent")); err != nil {
		t.Fatal(err)
	}
	if err := f.Up(t.Context(), UpOptions{Nodes: 1}); err == nil || !strings.Contains(err.Error(), "legion-agent not found") {
		t.Errorf("got %v, want what is missing", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := newFleet(t, filepath.Join(file, "dir")).Up(t.Context(), UpOptions{}); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("got %v, want a hint to --dir", err)
	}
	// legiond ends at once: its words and its log are in the error.
	f = newFleet(t, t.TempDir())
	if err := os.WriteFile(f.program("legiond"), []byte("#!/bin/sh\necho broken thing\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := f.Up(t.Context(), UpOptions{})
	if err == nil || !strings.Contains(err.Error(), "broken thing") || !strings.Contains(err.Error(), "legion down") {
		t.Errorf("got %v, want what legiond said", err)
	}
	if err := f.Down(t.Context(), true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.Dir); err == nil {
		t.Error("the directory is still there after a purge")
	}
}

func TestDownOfNothing(t *testing.T) {
	if err := newFleet(t, filepath.Join(t.TempDir(), "absent")).Down(t.Context(), false); err != nil {
		t.Error(err)
	}
}

func TestRemoveNodeOfAStoppedFleet(t *testing.T) {
	f := newFleet(t, t.TempDir())
	if err := f.AddNode(t.Context(), "n1"); err == nil || !strings.Contains(err.Error(), "legion up") {
		t.Errorf("got %v, want a hint to legion up", err)
	}
}
