package machine

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"legion.dev/legion/internal/service"
)

func TestTableIsTotal(t *testing.T) {
	if len(table) != len(States) {
		t.Errorf("the table has %d rows for %d states", len(table), len(States))
	}
	for _, s := range States {
		row := table[s]
		if row == nil {
			t.Errorf("%s has no row", s)
			continue
		}
		for k, c := range row {
			if c.do == nil {
				t.Errorf("%s × %s has no cell", s, Kind(k))
			}
		}
	}
}

var commandLists = [][]service.Command{nil, {{Path: "/a"}}, {{Path: "/a", IgnoreFailure: true}, {Path: "/b"}}}

// anyService draws a service of any type, with any of its parts.
func anyService(t *rapid.T) *service.Service {
	pick := func(label string) []service.Command { return rapid.SampledFrom(commandLists).Draw(t, label) }
	timeout := func(label string) time.Duration {
		return rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute}).Draw(t, label)
	}
	s := &service.Service{
		Name: "s", Start: []service.Command{{Path: "/main"}},
		Type: rapid.SampledFrom([]service.Type{
			service.Simple, service.Exec, service.Forking, service.Oneshot, service.Notify, service.NotifyReload, service.Idle,
		}).Draw(t, "type"),
		StartPre: pick("pre"), StartPost: pick("post"), Reload: pick("reload"), Stop: pick("stop"), StopPost: pick("stopPost"),
		TimeoutStart: timeout("timeoutStart"), TimeoutStop: timeout("timeoutStop"), TimeoutAbort: timeout("timeoutAbort"),
		RuntimeMax: timeout("runtimeMax"), Watchdog: timeout("watchdog"), RemainAfterExit: rapid.Bool().Draw(t, "remain"),
		NotifyAccess: rapid.SampledFrom([]service.NotifyAccess{"", service.NotifyAll, service.NotifyMain}).Draw(t, "access"),
	}
	if s.Type == service.Oneshot {
		s.Start = pick("start")
	}
	if s.Type == service.Forking && rapid.Bool().Draw(t, "pidfile") {
		s.PIDFile = "/run/s.pid"
	}
	s.Restart.Mode = rapid.SampledFrom([]service.RestartMode{
		"", service.RestartNo, service.RestartAlways, service.RestartOnFailure, service.RestartOnSuccess, service.RestartOnAbort,
	}).Draw(t, "restart")
	s.Restart.Delay = timeout("delay")
	if rapid.Bool().Draw(t, "backoff") {
		s.Restart.Backoff = &service.Backoff{Initial: time.Second, Max: 10 * time.Second, ResetAfter: time.Minute}
	}
	if rapid.IntRange(0, 3).Draw(t, "all") == 0 {
		s.Restart.All = service.ExitSet{Codes: []int{1}, Signals: []int{9}}
	}
	s.Kill.Mode = rapid.SampledFrom([]service.KillMode{"", service.KillMixed, service.KillProcess, service.KillNone}).Draw(t, "kill")
	s.Kill.NoSIGKILL = rapid.IntRange(0, 5).Draw(t, "nokill") == 0
	for _, p := range []**service.Probe{&s.Startup, &s.Readiness, &s.Liveness} {
		if rapid.IntRange(0, 2).Draw(t, "probe") == 0 {
			*p = &service.Probe{TCP: &service.TCPProbe{Port: 1}, Period: time.Second}
		}
	}
	return s
}

// world is what surrounds a machine: its processes and the clock.
type world struct {
	t    *rapid.T
	c    Config
	in   Instance
	now  time.Time
	live map[uint64]int // process → PID; 0 while it is being started
	main map[uint64]bool
	seen map[service.State]bool
	pids int
	// strangers are processes of the cgroup that nobody waits for.
	strangers int
}

func newWorld(t *rapid.T) *world {
	w := &world{
		t: t, c: Config{Service: anyService(t)}, now: time.Unix(1e9, 0),
		live: map[uint64]int{}, main: map[uint64]bool{}, seen: map[service.State]bool{}, pids: 100,
	}
	if rapid.Bool().Draw(t, "limit") {
		w.c.StartLimit = service.StartLimit{Interval: 10 * time.Second, Burst: 3}
	}
	if rapid.Bool().Draw(t, "hasGrace") {
		w.c.Grace = 20 * time.Second
	}
	w.in = New(w.now)
	return w
}

// give takes one step and holds what comes of it against the rules.
func (w *world) give(ev Event) []Effect {
	t := w.t
	ev.Left = len(w.live) > 0 || w.strangers > 0
	before, was := w.in.clone(), w.in.State
	next, effects := Step(w.c, w.in, ev, w.now)
	if !reflect.DeepEqual(before, w.in.clone()) {
		t.Fatalf("%s in %s changed the instance that was handed in", ev.Kind, was)
	}
	again, sameEffects := Step(w.c, w.in, ev, w.now)
	if !reflect.DeepEqual(next, again) || !reflect.DeepEqual(effects, sameEffects) {
		t.Fatalf("%s in %s gives one thing now and another then", ev.Kind, was)
	}
	w.in = next
	w.checkCell(was, ev)
	for _, e := range effects {
		w.take(e)
	}
	w.checkInstance()
	return effects
}

// checkCell: the table says truly where a step may end. An exit counts for
// whichever process it is of.
func (w *world) checkCell(was service.State, ev Event) {
	if w.in.State == was {
		return
	}
	kinds := []Kind{ev.Kind}
	if ev.Kind == MainExited {
		kinds = append(kinds, ControlExited)
	}
	for _, k := range kinds {
		if slices.Contains(table[was][k].to, w.in.State) {
			return
		}
	}
	w.t.Fatalf("%s in %s leads to %s, and its cell does not say so", ev.Kind, was, w.in.State)
}

func (w *world) take(e Effect) {
	switch e := e.(type) {
	case Spawn:
		if e.Main {
			for id := range w.live {
				if w.main[id] && w.c.Service.Kill.Mode == "" {
					w.t.Fatalf("a main process is started beside another")
				}
			}
			w.main[e.Proc] = true
		}
		w.live[e.Proc] = 0
	case Transition:
		if e.Reason == "" {
			w.t.Fatalf("%s to %s without a reason", e.From, e.To)
		}
		w.seen[e.To] = true
	case Signal:
		if e.Number == 0 {
			w.t.Fatalf("signal 0")
		}
		for _, pid := range e.PIDs {
			if pid == 0 {
				w.t.Fatalf("a signal to process 0")
			}
		}
	case CleanUp:
		// What is left (KillMode=process) is nobody's any more.
		if w.c.Service.Kill.Mode != "" || w.in.Stuck {
			clear(w.live)
		}
	}
}

func (w *world) checkInstance() {
	in, t, s := &w.in, w.t, w.c.Service
	switch in.State {
	case service.Dead, service.Failed, service.AutoRestart:
		if in.Main != nil || in.Control != nil {
			t.Fatalf("%s, and a process is known", in.State)
		}
	case service.Running, service.Exited:
		if in.Control != nil {
			t.Fatalf("%s with a control process", in.State)
		}
	case service.StopSigkill, service.FinalSigkill:
		if in.Deadline.IsZero() {
			t.Fatalf("%s without a deadline", in.State)
		}
	}
	if in.State == service.AutoRestart && in.Deadline.IsZero() {
		t.Fatalf("auto-restart without a time")
	}
	if s.TimeoutStart > 0 && (in.State == service.StartPre || in.State == service.Start || in.State == service.StartPost) && in.Deadline.IsZero() {
		t.Fatalf("%s without a deadline", in.State)
	}
	if (s.TimeoutStop > 0 || w.c.Grace > 0) && (in.State == service.StopSigterm || in.State == service.FinalSigterm) && in.Deadline.IsZero() {
		if in.Result != service.WatchdogLate {
			t.Fatalf("%s without a deadline", in.State)
		}
	}
	if in.State != service.Running && in.State != service.Reload && (!in.Watchdog.IsZero() || !in.RuntimeEnd.IsZero() || !in.Liveness.Next.IsZero()) {
		t.Fatalf("%s keeps a time that belongs to running", in.State)
	}
}

func (w *world) some() (uint64, bool) {
	ids := make([]uint64, 0, len(w.live))
	for id := range w.live {
		ids = append(ids, id)
	}
	if len(ids) == 0 {
		return 0, false
	}
	slices.Sort(ids)
	return rapid.SampledFrom(ids).Draw(w.t, "process"), true
}

// act lets the world do one thing.
func (w *world) act() {
	t := w.t
	switch rapid.IntRange(0, 15).Draw(t, "act") {
	case 0, 1:
		w.give(Event{Kind: StartAsked})
	case 2:
		w.give(Event{Kind: StopAsked})
	case 3:
		w.give(Event{Kind: RestartAsked})
	case 4:
		w.give(Event{Kind: rapid.SampledFrom([]Kind{ReloadAsked, ResetAsked}).Draw(t, "ask")})
	case 5, 6, 7, 8:
		w.progress(rapid.Bool().Draw(t, "well"))
	case 9:
		if len(w.live) == 0 {
			w.strangers = 0
			w.give(Event{Kind: Emptied})
		}
	case 10:
		w.give(Event{Kind: Notified, PID: w.mainPID(), Note: Note{
			Ready: rapid.Bool().Draw(t, "ready"), Reloading: rapid.Bool().Draw(t, "reloading"),
			Stopping: rapid.IntRange(0, 5).Draw(t, "stopping") == 0, Watchdog: rapid.Bool().Draw(t, "ping"),
		}})
	case 11:
		w.give(Event{
			Kind: Probed, Run: w.in.Run, Probe: ProbeKind(rapid.IntRange(0, 2).Draw(t, "probe")), OK: rapid.Bool().Draw(t, "ok"), Message: "no",
		})
	case 12:
		w.alarm()
	case 13:
		w.stale()
	case 14:
		w.give(Event{Kind: MainMissing, Run: w.in.Run, Message: "no file"})
	case 15:
		if _, ok := w.some(); ok {
			w.strangers++
		}
	}
}

func (w *world) mainPID() int {
	if w.in.Main != nil {
		return w.in.Main.PID
	}
	return 0
}

// progress lets one process start or end.
func (w *world) progress(well bool) {
	id, ok := w.some()
	if !ok {
		return
	}
	if w.live[id] == 0 {
		if !well {
			delete(w.live, id)
			w.give(Event{Kind: SpawnFailed, Run: w.in.Run, Proc: id, Message: "no such file"})
			return
		}
		w.pids++
		w.live[id] = w.pids
		w.give(Event{Kind: Spawned, Run: w.in.Run, Proc: id, PID: w.pids, StartTicks: 1})
		return
	}
	delete(w.live, id)
	exit := service.Exit{At: w.now}
	if !well {
		exit.Code = 1
	}
	w.give(Event{Kind: MainExited, Proc: id, Exit: exit})
}

func (w *world) alarm() bool {
	at := w.in.NextAlarm()
	if at.IsZero() {
		return false
	}
	if at.After(w.now) {
		w.now = at
	}
	before := w.in.clone()
	if effects := w.give(Event{Kind: Alarmed}); len(effects) == 0 && reflect.DeepEqual(before, w.in.clone()) {
		w.t.Fatalf("an alarm in %s that is answered by nothing", w.in.State)
	}
	return true
}

// stale gives news of an earlier run and of processes long gone.
func (w *world) stale() {
	if w.in.Run < 2 {
		return
	}
	before := w.in.clone()
	for _, ev := range []Event{
		{Kind: MainExited, Run: w.in.Run - 1, Proc: 1},
		{Kind: MainExited, Proc: 1 << 40},
		{Kind: Spawned, Run: w.in.Run - 1, Proc: w.in.Procs, PID: 7},
		{Kind: SpawnFailed, Run: w.in.Run - 1, Proc: w.in.Procs},
		{Kind: Probed, Run: w.in.Run - 1},
		{Kind: MainFound, Run: w.in.Run - 1, PID: 7},
	} {
		if effects := w.give(ev); len(effects) > 0 || !reflect.DeepEqual(before, w.in.clone()) {
			w.t.Fatalf("%s of an earlier run changed something in %s", ev.Kind, w.in.State)
		}
	}
}

// TestAnyLife: whatever happens, the rules hold; and once a stop is asked for
// and processes end as they are told, every state leads to dead or failed.
func TestAnyLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 60).Draw(t, "length") {
			w.act()
			w.now = w.now.Add(rapid.SampledFrom([]time.Duration{0, time.Millisecond, time.Second}).Draw(t, "pause"))
		}
		w.give(Event{Kind: StopAsked})
		for range 200 {
			if w.in.State == service.Dead || w.in.State == service.Failed {
				return
			}
			switch {
			case len(w.live) > 0:
				w.progress(true)
			case w.strangers > 0:
				w.strangers = 0
				w.give(Event{Kind: Emptied})
			case !w.alarm():
				w.give(Event{Kind: Emptied})
			}
		}
		t.Fatalf("asked to stop, and still %s (%s)", w.in.State, w.in.Reason)
	})
}
