package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
)

// machineFake stands for the machine: processes that start and end as the test
// says, in virtual time.
type machineFake struct {
	mu    sync.Mutex
	next  int
	procs map[int]*procFake
	exits chan Exited
	empty chan string
	notes chan Message
	// lost is what a machine cannot limit.
	lost []string
	// slow delays the start of a service by so much.
	slow map[string]time.Duration
	// deaf services do not end by SIGTERM.
	deaf map[string]bool
	// ready services say so before the news of their start is out.
	ready map[string]bool
	// origin says where processes come from, in place of Heir.
	origin func(pid int) Origin
	// follows are processes that others have started.
	follows []int
	// broken services cannot be started.
	broken map[string]bool
	// hungry services are killed for want of memory before the news of their
	// start is out; ooms counts that.
	hungry map[string]bool
	ooms   int
	log    []string
	// asked is the last start of each service.
	asked map[string]Request
	// probe, where not nil, answers probes and requests of hooks.
	probe func(context.Context, *service.Probe) (bool, string)
	saved map[string]any
	full  bool // nothing can be saved
	clock Clock
	units []service.Group
	// templates are found by name only.
	templates []service.Group
}

type procFake struct {
	m    *machineFake
	pid  int
	path string
}

func newFake() *machineFake {
	return &machineFake{
		next: 100, procs: map[int]*procFake{}, exits: make(chan Exited, 100), empty: make(chan string, 100), notes: make(chan Message, 100),
		slow: map[string]time.Duration{}, deaf: map[string]bool{}, ready: map[string]bool{}, hungry: map[string]bool{}, broken: map[string]bool{}, saved: map[string]any{}, asked: map[string]Request{},
	}
}

// be changes what the machine is like while a host runs on it.
func (m *machineFake) be(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *machineFake) say(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *machineFake) Start(q Request) (Process, error) {
	m.mu.Lock()
	slow, ready := m.slow[q.Service], m.ready[q.Service]
	m.mu.Unlock()
	if !ready {
		time.Sleep(slow) // virtual
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken[q.Service] {
		return nil, errors.New("no such file")
	}
	m.next++
	m.asked[q.Service] = q
	p := &procFake{m, m.next, q.Cgroup}
	m.procs[p.pid] = p
	if beside := m.procs[q.PIDs]; beside != nil {
		m.say("start %s beside %s", q.Service, beside.path)
	} else {
		m.say("start %s%s%s", q.Service, m.shared(q), map[bool]string{true: " in debug mode"}[slices.Contains(q.Env, "DEBUG_INVOCATION=1")])
	}
	if m.hungry[q.Service] {
		m.ooms++
		m.end(p, service.Exit{At: time.Now(), Signal: 9})
		time.Sleep(time.Second)
	}
	if ready {
		m.notes <- Message{PID: p.pid, Note: machine.Note{Ready: true}}
		time.Sleep(slow)
	}
	return p, nil
}

func (m *machineFake) Adopt(pid int, _ uint64) (Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.procs[pid]; p != nil {
		return p, nil
	}
	return nil, ErrGone
}

func (m *machineFake) Exec(context.Context, ExecRequest, func(int)) (service.Exit, error) {
	return service.Exit{}, errors.New("no commands here")
}

func (m *machineFake) Untold() bool                                         { return len(m.exits) > 0 }
func (m *machineFake) Exits() <-chan Exited                                 { return m.exits }
func (m *machineFake) Begin()                                               {}
func (m *machineFake) Suspend()                                             { m.exits <- Exited{} }
func (m *machineFake) Leads(pid int) bool                                   { return !slices.Contains(m.follows, pid) }
func (m *machineFake) CleanUp(string, *service.Service, bool) error         { return nil }
func (m *machineFake) Limit(string, *service.Limits) (enter, lost []string) { return nil, nil }
func (m *machineFake) Move(path string, pid int) error {
	m.be(func() { m.procs[pid].path = path; m.say("move %d to %s", pid, path) })
	return nil
}

func (m *machineFake) Freeze(path string, frozen bool) error {
	m.be(func() { m.say("%s %s", map[bool]string{true: "freeze", false: "thaw"}[frozen], path) })
	return nil
}

func (m *machineFake) Clean(c *service.ExecContext, what []string) error {
	time.Sleep(time.Second) // virtual
	m.be(func() { m.say("clean %s of %s", strings.Join(what, " "), c.State[0].Path) })
	return nil
}

// bounds is the limit that a test changes.
func bounds(r *service.Limits) string {
	if r.TasksMax != nil {
		return fmt.Sprintf("%d tasks", r.TasksMax.Value)
	}
	return fmt.Sprintf("%d of the processor", r.CPUQuota)
}

func (m *machineFake) Relimit(path string, _, r *service.Limits) []string {
	m.be(func() {
		if r != nil {
			m.say("limit %s to %s", path, bounds(r))
		}
	})
	return m.lost
}
func (m *machineFake) Without(*service.ExecContext) []string { return nil }
func (m *machineFake) Release(*service.Group) error          { return nil }
func (p *procFake) PID() int                                 { return p.pid }
func (p *procFake) StartTicks() uint64                       { return 1 }
func (p *procFake) Close()                                   {}
func (p *procFake) Signal(n int) error                       { p.m.signal(p.pid, n); return nil }

func (m *machineFake) OOMKills(string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ooms
}

func (m *machineFake) signal(pid, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.procs[pid]
	if p == nil || n != 15 && n != 9 || n == 15 && m.deaf[p.path] {
		return
	}
	m.end(p, service.Exit{At: time.Now(), Signal: n})
}

func (m *machineFake) end(p *procFake, e service.Exit) {
	delete(m.procs, p.pid)
	m.say("end %s", p.path)
	m.exits <- Exited{PID: p.pid, StartTicks: 1, Exit: e}
}

// crash ends the process of a service.
func (m *machineFake) crash(path string, code int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.procs {
		if p.path == path {
			m.end(p, service.Exit{At: time.Now(), Code: code})
			return
		}
	}
}

// Origin is Heir, or as the test says.
func (m *machineFake) Origin(pid int, _ string) Origin {
	if m.origin != nil {
		return m.origin(pid)
	}
	return Heir
}

func (m *machineFake) Create(path string) (string, error) { return path, nil }
func (m *machineFake) Remove(string) error                { return nil }
func (m *machineFake) Empty() <-chan string               { return m.empty }
func (m *machineFake) Started(string, int, string)        {}
func (m *machineFake) Invocations() map[string][]int      { return nil }
func (m *machineFake) Exited(int)                         {}
func (m *machineFake) Lost() []string                     { return nil }
func (m *machineFake) Mode() (string, string)             { return "v2", "" }

func (m *machineFake) Of(pid int, _ []string) (string, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.procs[pid]; p != nil {
		return p.path, true
	}
	return "", false
}

func (m *machineFake) Pids(path string) ([]int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var pids []int
	for pid, p := range m.procs {
		if p.path == path {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (m *machineFake) Populated(path string) bool {
	pids, _ := m.Pids(path)
	return len(pids) > 0
}

func (m *machineFake) ByID(uint64) (string, bool) { return "", false }

func (m *machineFake) Signal(path string, n int, except []int) error {
	pids, _ := m.Pids(path)
	for _, pid := range pids {
		if !slices.Contains(except, pid) {
			m.signal(pid, n)
		}
	}
	return nil
}

func (m *machineFake) Kill(path string) error { return m.Signal(path, 9, nil) }

type logsFake struct{}

func (logsFake) Attach(string, string, uint64) (string, string, error) { return "", "", nil }
func (logsFake) Ended(string, string)                                  {}
func (logsFake) Detach(string, string)                                 {}
func (logsFake) Remove(string) error                                   { return nil }
func (logsFake) Write(string, string, string) error                    { return nil }
func (logsFake) Dir(string, string) string                             { return "" }
func (logsFake) Problems() []service.Warning                           { return nil }
func (logsFake) Read(context.Context, string, string, hostapi.LogQuery, io.Writer) error {
	return nil
}

type notesFake struct{ c chan Message }

func (n notesFake) Suspend()                 { close(n.c) }
func (notesFake) Path() string               { return "/n" }
func (n notesFake) Messages() <-chan Message { return n.c }

type unitsFake struct{ m *machineFake }

func (u unitsFake) Load() ([]service.Group, []service.Warning) { return u.m.units, nil }
func (u unitsFake) Find(name string) (service.Group, error) {
	for _, g := range u.m.templates {
		if g.Name == name {
			return g, nil
		}
	}
	return service.Group{}, errors.New("there is no " + name)
}
func (unitsFake) Path() []string { return nil }

type probesFake struct{ m *machineFake }

func (p probesFake) Probe(ctx context.Context, q *service.Probe, _ Target) (bool, string) {
	if p.m.probe != nil {
		return p.m.probe(ctx, q)
	}
	return true, ""
}

type storeFake struct{ m *machineFake }

func (s storeFake) Save(k store.Kind, name string, v any) error {
	s.m.mu.Lock()
	full := s.m.full
	s.m.mu.Unlock()
	if full {
		return syscall.ENOSPC
	}
	s.m.saved[string(k)+" "+name] = v
	return nil
}

func (s storeFake) Delete(k store.Kind, name string) error {
	delete(s.m.saved, string(k)+" "+name)
	return nil
}
func (storeFake) Sync() error { return nil }

// fixture is a host on a fake machine.
type fixture struct {
	t *testing.T
	m *machineFake
	h *Host
	// leave ends the loop, and waits for that.
	leave func()
}

func (m *machineFake) host(t *testing.T) *fixture {
	return m.hostWith(t, Saved{})
}

func (m *machineFake) hostWith(t *testing.T, saved Saved) *fixture {
	return m.hostOf(t, m.options(saved))
}

func (m *machineFake) options(saved Saved) Options {
	return Options{
		Processes: m, Cgroups: m, Logs: logsFake{}, Notes: notesFake{m.notes}, Probes: probesFake{m}, Units: unitsFake{m},
		Store: storeFake{m}, Saved: saved, BootID: "boot", Clock: m.clock,
	}
}

func (m *machineFake) hostOf(t *testing.T, o Options) *fixture {
	h := New(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = h.Run(ctx); close(done) }()
	synctest.Wait()
	return &fixture{t, m, h, func() { cancel(); <-done; synctest.Wait() }}
}

func (f *fixture) do(name, verb string) error {
	_, err := f.h.Do(context.Background(), name, verb, "test", true, nil)
	synctest.Wait()
	return err
}

func (f *fixture) state(name string) string {
	g, err := f.h.Group(context.Background(), name)
	if err != nil {
		return err.Error()
	}
	return g.SubState
}

// said gives what happened since the last call.
func (f *fixture) said() string {
	synctest.Wait()
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	s := strings.Join(f.m.log, ", ")
	f.m.log = nil
	return s
}

func (f *fixture) expect(want string) {
	f.t.Helper()
	if got := f.said(); got != want {
		f.t.Errorf("got  %s\nwant %s", got, want)
	}
}

func unitOf(name string, d service.Dependencies) service.Group {
	return service.Group{
		Name: name, Source: service.Source{Kind: service.FromUnit, Files: []string{name}}, Deps: d,
		Services: []service.Service{{Name: name, Type: service.Exec, Start: []service.Command{{Path: "/x"}}, TimeoutStop: 10 * time.Second}},
	}
}

func TestOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.slow["db"] = time.Second
		m.units = []service.Group{
			unitOf("app", service.Dependencies{Requires: []string{"db"}, Wants: []string{"log", "nothing"}, After: []string{"db"}}),
			unitOf("db", service.Dependencies{}), unitOf("log", service.Dependencies{After: []string{"app"}}),
		}
		f := m.host(t)
		defer f.leave()
		if err := f.do("app", "start"); err != nil {
			t.Fatal(err)
		}
		f.expect("start db, start app, start log")
		if err := f.do("db", "stop"); err != nil {
			t.Fatal(err)
		}
		f.expect("end app, end db") // log only wants to come later
		if got := f.state("log"); got != "running" {
			t.Errorf("log is %s", got)
		}
	})
}

func TestRequirementFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.broken["db"] = true
		m.units = []service.Group{
			unitOf("app", service.Dependencies{Requires: []string{"db"}, After: []string{"db"}}), unitOf("db", service.Dependencies{}),
		}
		f := m.host(t)
		defer f.leave()
		err := f.do("app", "start")
		if err == nil || !strings.Contains(err.Error(), "db, which it requires, did not start") || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("the start gives %v", err)
		}
		f.expect("")
	})
}

func TestConflictAndBinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.units = []service.Group{
			unitOf("a", service.Dependencies{Conflicts: []string{"b"}}), unitOf("b", service.Dependencies{}),
			unitOf("c", service.Dependencies{BindsTo: []string{"a"}, After: []string{"a"}}),
		}
		f := m.host(t)
		defer f.leave()
		for _, n := range []string{"b", "a", "c"} {
			if err := f.do(n, "start"); err != nil {
				t.Fatal(err)
			}
		}
		f.expect("start b, end b, start a, start c")
		m.crash("a", 1)
		f.expect("end a, end c")
	})
}

func TestPoweroffInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.deaf["b"] = true
		m.units = []service.Group{
			unitOf("a", service.Dependencies{}), unitOf("b", service.Dependencies{After: []string{"a"}}), unitOf("c", service.Dependencies{After: []string{"b"}}),
		}
		f := m.host(t)
		defer f.leave()
		for _, n := range []string{"a", "b", "c"} {
			if err := f.do(n, "start"); err != nil {
				t.Fatal(err)
			}
		}
		f.said()
		began := time.Now()
		if _, err := f.h.Poweroff(context.Background(), "test"); err != nil {
			t.Fatal(err)
		}
		f.expect("end c, end b, end a")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("it took %s; b is deaf for its TimeoutStop of 10s", took)
		}
		if r := m.saved["runs a"].(record); r.Boot != "" {
			t.Errorf("after an end in good order the record is of boot %q", r.Boot)
		}
	})
}

// TestStopWhileStarting: the process that appears after the stop was asked for
// is ended, and its end is seen.
func TestStopWhileStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.slow["a"] = 5 * time.Second
		m.units = []service.Group{unitOf("a", service.Dependencies{})}
		f := m.host(t)
		defer f.leave()
		if _, err := f.h.Do(context.Background(), "a", "start", "test", false, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := f.do("a", "stop"); err != nil {
			t.Fatal(err)
		}
		f.expect("start a, end a")
		if got := f.state("a"); got != "dead" {
			t.Errorf("it is %s", got)
		}
	})
}

// TestEarlyMessage: READY=1 of a quick service comes before the news of its
// start.
func TestEarlyMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("n", service.Dependencies{})
		g.Services[0].Type, g.Services[0].NotifyAccess = service.Notify, service.NotifyAll
		m.units = []service.Group{g}
		f := m.host(t)
		defer f.leave()
		m.ready["n"] = true
		m.slow["n"] = time.Second
		if err := f.do("n", "start"); err != nil {
			t.Fatal(err)
		}
		if got := f.state("n"); got != "running" {
			t.Errorf("it is %s", got)
		}
	})
}

// TestEarlyWantOfMemory: a process that the kernel has killed for want of memory
// before the news of its start is known to have ended so.
func TestEarlyWantOfMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("n", service.Dependencies{})
		g.Services[0].Resources = &service.Limits{MemoryMax: &service.Amount{Value: 1 << 20}}
		m.units = []service.Group{g}
		f := m.host(t)
		defer f.leave()
		m.be(func() { m.ooms, m.hungry["n"] = 3, true })
		if _, err := f.h.Do(context.Background(), "n", "start", "test", false, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		group, err := f.h.Group(context.Background(), "n")
		if err != nil {
			t.Fatal(err)
		}
		if main := group.Status.Services[0].Main; main == nil || main.Exit == nil || !main.Exit.OOM {
			t.Errorf("its end: %+v", group.Status.Services[0])
		}
	})
}

// TestTakeOver: a legiond that follows a crashed one goes on in the middle of
// whatever was under way, and starts nothing that runs.
func TestTakeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		m.deaf["stops"] = true
		m.units = []service.Group{unitOf("runs", service.Dependencies{}), unitOf("stops", service.Dependencies{}), unitOf("starts", service.Dependencies{})}
		f := m.host(t)
		for _, n := range []string{"runs", "stops"} {
			if err := f.do(n, "start"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.h.Do(context.Background(), "stops", "stop", "test", false, nil); err != nil {
			t.Fatal(err)
		}
		m.slow["starts"] = time.Millisecond
		if _, err := f.h.Do(context.Background(), "starts", "start", "test", false, nil); err != nil {
			t.Fatal(err)
		}
		f.leave() // before the news of the start of "starts" has come
		time.Sleep(time.Second)
		f.expect("start runs, start stops, start starts")
		f = m.hostWith(t, Saved{Runs: m.records()})
		defer f.leave()
		f.expect("")
		for name, want := range map[string]string{"runs": "running", "starts": "running", "stops": "stop-sigterm"} {
			if got := f.state(name); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
		time.Sleep(10 * time.Second)
		f.expect("end stops")
	})
}

func TestBootFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("pod", service.Dependencies{})
		g.Source.Kind = service.FromPod
		stopped := unitOf("stopped", service.Dependencies{})
		stopped.Boot = true
		in := machine.New(time.Now())
		in.Run, in.Restarts, in.State = 7, 2, service.Running
		f := m.hostWith(t, Saved{
			Groups: map[string]service.Group{"pod": g, "stopped": stopped},
			Wishes: map[string]wish{"pod": {Wanted: true}, "stopped": {By: "request"}},
			Runs:   map[string]record{"pod": {Boot: "another boot", Instances: map[string]machine.Instance{"pod": in}}},
		})
		defer f.leave()
		f.expect("start pod")
		w, err := f.h.Group(context.Background(), "pod")
		if s := w.Status.Services[0]; err != nil || s.Main.Number != 8 || s.Restarts != 3 {
			t.Errorf("it is %+v (%v)", s, err)
		}
	})
}

func TestConditionSkips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("c", service.Dependencies{})
		g.Conditions = []service.Condition{{Kind: "PathExists", Value: "/no/such/path"}}
		a := unitOf("a", service.Dependencies{})
		a.Conditions = []service.Condition{{Kind: "PathExists", Value: "/", Negate: true, Assert: true}}
		m.units = []service.Group{g, a}
		f := m.host(t)
		defer f.leave()
		if err := f.do("c", "start"); err != nil {
			t.Errorf("a false condition is a failure: %v", err)
		}
		if err := f.do("a", "start"); err == nil || !strings.Contains(err.Error(), "AssertPathExists=!/") {
			t.Errorf("a false assertion gives %v", err)
		}
		f.expect("")
	})
}
