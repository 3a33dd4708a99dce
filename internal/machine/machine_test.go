package machine

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

// script plays one life and writes down what the machine does, a line for each
// event: "main exits 1 → auto-restart".
type script struct {
	t   *testing.T
	c   Config
	in  Instance
	now time.Time
	// pids are given to processes as they are started.
	pid  int
	left bool
	out  []string
}

func play(t *testing.T, s service.Service) *script {
	t.Helper()
	if s.Name == "" {
		s.Name = "s"
	}
	if s.Start == nil {
		s.Start = []service.Command{{Path: "/main"}}
	}
	p := &script{t: t, c: Config{Service: &s}, now: time.Unix(1e9, 0), pid: 100}
	p.in = New(p.now)
	return p
}

func (p *script) give(what string, ev Event) *script {
	p.t.Helper()
	ev.Left = ev.Left || p.left
	before := p.in.State
	next, effects := Step(p.c, p.in, ev, p.now)
	p.in = next
	var words []string
	for _, e := range effects {
		switch e := e.(type) {
		case Transition:
			words = append(words, string(e.To))
		case Spawn:
			words = append(words, fmt.Sprintf("run %s[%d]", e.Kind, e.Index))
		case Signal:
			w := SignalName(e.Number)
			if e.All {
				w += " to all"
			} else {
				w += fmt.Sprint(" to ", e.PIDs)
			}
			words = append(words, w)
		case FindMain:
			words = append(words, "look for main")
		case RunProbe:
			words = append(words, "probe "+e.Kind.String())
		}
	}
	if len(words) == 0 {
		words = []string{"(" + string(before) + ")"}
	}
	p.out = append(p.out, what+": "+strings.Join(words, ", "))
	return p
}

func (p *script) start() *script   { return p.give("start", Event{Kind: StartAsked}) }
func (p *script) stop() *script    { return p.give("stop", Event{Kind: StopAsked}) }
func (p *script) restart() *script { return p.give("restart", Event{Kind: RestartAsked}) }
func (p *script) reload() *script  { return p.give("reload", Event{Kind: ReloadAsked}) }

// up tells that the newest process was started.
func (p *script) up() *script {
	p.pid++
	return p.give(fmt.Sprintf("up %d", p.pid), Event{Kind: Spawned, Run: p.in.Run, Proc: p.in.Procs, PID: p.pid, StartTicks: 1})
}

func (p *script) main(e service.Exit) *script {
	p.t.Helper()
	if p.in.Main == nil {
		p.t.Fatalf("there is no main process; so far:\n%s", strings.Join(p.out, "\n"))
	}
	e.At = p.now
	return p.give("main "+ExitWords(e), Event{Kind: MainExited, Run: p.in.Run, Proc: p.in.Main.ID, Exit: e})
}

func (p *script) control(code int) *script {
	p.t.Helper()
	if p.in.Control == nil {
		p.t.Fatalf("there is no control process; so far:\n%s", strings.Join(p.out, "\n"))
	}
	return p.give(fmt.Sprintf("control exits %d", code), Event{Kind: MainExited, Run: p.in.Run, Proc: p.in.Control.ID, Exit: service.Exit{At: p.now, Code: code}})
}

func (p *script) notify(n Note) *script {
	return p.give("notify", Event{Kind: Notified, PID: p.in.Main.PID, Note: n})
}

// wait lets the time pass to the next alarm, and tells how long that was.
func (p *script) wait() *script {
	p.t.Helper()
	at := p.in.NextAlarm()
	if at.IsZero() {
		p.t.Fatalf("there is nothing to wait for; so far:\n%s", strings.Join(p.out, "\n"))
	}
	d := at.Sub(p.now)
	p.now = at
	return p.give("after "+d.String(), Event{Kind: Alarmed})
}

func (p *script) pass(d time.Duration) *script { p.now = p.now.Add(d); return p }

// check compares the transcript.
func (p *script) check(want string) {
	p.t.Helper()
	got := strings.Join(p.out, "\n")
	want = strings.TrimSpace(strings.ReplaceAll(want, "\t", ""))
	if got != want {
		p.t.Errorf("got\n%s\n\nwant\n%s", got, want)
	}
}

var killed = service.Exit{Signal: 9}

func TestSimple(t *testing.T) {
	play(t, service.Service{Stop: []service.Command{{Path: "/stop"}}}).
		start().up().stop().up().control(0).main(service.Exit{Signal: 15}).check(`
		start: start, run start[0]
		up 101: running
		stop: stop, run stop[0]
		up 102: (stop)
		control exits 0: stop-sigterm, SIGTERM to all
		main was killed by SIGTERM: dead`)
}

func TestRestartKeepsNoDelayAfterARequest(t *testing.T) {
	play(t, service.Service{Restart: service.Restart{Mode: service.RestartAlways, Delay: time.Minute}, Kill: service.Kill{Mode: service.KillMixed}}).
		start().up().restart().main(service.Exit{}).check(`
		start: start, run start[0]
		up 101: running
		restart: stop-sigterm, SIGTERM to [101]
		main exited with status 0: start, run start[0]`)
}

func TestStopBeforeTheProcessIsThere(t *testing.T) {
	play(t, service.Service{}).start().stop().up().main(service.Exit{Signal: 15}).check(`
		start: start, run start[0]
		stop: stop-sigterm, SIGTERM to all
		up 101: SIGTERM to all
		main was killed by SIGTERM: dead`)
}

func TestMixedKillsTheRest(t *testing.T) {
	p := play(t, service.Service{Kill: service.Kill{Mode: service.KillMixed}, TimeoutStop: time.Minute}).start().up()
	p.left = true
	p.stop().main(service.Exit{})
	p.left = false
	p.give("empty", Event{Kind: Emptied}).check(`
		start: start, run start[0]
		up 101: running
		stop: stop-sigterm, SIGTERM to [101]
		main exited with status 0: final-sigkill, SIGKILL to all
		empty: dead`)
}

func TestEscalation(t *testing.T) {
	p := play(t, service.Service{TimeoutStop: time.Second, StopPost: []service.Command{{Path: "/post"}}}).start().up().stop().wait().main(killed).up().control(0)
	p.check(`
		start: start, run start[0]
		up 101: running
		stop: stop-sigterm, SIGTERM to all
		after 1s: stop-sigkill, SIGKILL to all
		main was killed by SIGKILL: stop-post, run stop-post[0]
		up 102: (stop-post)
		control exits 0: failed`)
	if p.in.Result != service.Timeout {
		t.Errorf("the result is %s", p.in.Result)
	}
}

func TestGraceBoundsStopAndSignal(t *testing.T) {
	p := play(t, service.Service{Stop: []service.Command{{Path: "/hook"}}, TimeoutStop: time.Hour})
	p.c.Grace = 10 * time.Second
	p.start().up().stop().up().pass(4 * time.Second).control(0).wait().check(`
		start: start, run start[0]
		up 101: running
		stop: stop, run stop[0]
		up 102: (stop)
		control exits 0: stop-sigterm, SIGTERM to all
		after 6s: stop-sigkill, SIGKILL to all`)
}

func TestForkingWithPIDFile(t *testing.T) {
	p := play(t, service.Service{Type: service.Forking, PIDFile: "/run/d.pid", TimeoutStart: time.Second})
	p.start().up()
	p.left = true
	p.control(0).give("missing", Event{Kind: MainMissing, Run: 1, Message: "no file"}).wait().
		give("found", Event{Kind: MainFound, Run: 1, PID: 500, StartTicks: 9}).check(`
		start: start, run start[0]
		up 101: (start)
		control exits 0: look for main
		missing: (start)
		after 10ms: look for main
		found: running`)
	if p.in.Main.PID != 500 || p.in.Newest.PID != 500 {
		t.Errorf("the main process is %+v", p.in.Main)
	}
}

// TestForkingWithoutPIDFile: why there is no main process is said.
func TestForkingWithoutPIDFile(t *testing.T) {
	p := play(t, service.Service{Type: service.Forking, PIDFile: "/run/d.pid", TimeoutStart: 15 * time.Millisecond})
	p.start().up()
	p.left = true
	missing := Event{Kind: MainMissing, Run: 1, Message: "no file"}
	p.control(0).give("missing", missing)
	if p.in.Reason != missing.Message {
		t.Errorf("meanwhile %q", p.in.Reason)
	}
	p.wait().give("missing", missing).wait()
	if want := "not started within 15ms: no file"; p.in.State != service.StopSigterm || p.in.Reason != want {
		t.Errorf("it is %s: %q", p.in.State, p.in.Reason)
	}
}

func TestForkingWithoutMain(t *testing.T) {
	p := play(t, service.Service{Type: service.Forking})
	p.start().up()
	p.left = true
	p.control(0).give("missing", Event{Kind: MainMissing, Run: 1, Message: "two processes"})
	p.left = false
	p.give("empty", Event{Kind: Emptied}).check(`
		start: start, run start[0]
		up 101: (start)
		control exits 0: look for main
		missing: running
		empty: dead`)
}

func TestOneshotRunsInOrder(t *testing.T) {
	play(t, service.Service{
		Type: service.Oneshot, RemainAfterExit: true, StartPre: []service.Command{{Path: "/pre"}},
		Start: []service.Command{{Path: "/a", IgnoreFailure: true}, {Path: "/b"}},
	}).start().up().control(0).up().main(service.Exit{Code: 1}).up().main(service.Exit{}).stop().check(`
		start: start-pre, run start-pre[0]
		up 101: (start-pre)
		control exits 0: start, run start[0]
		up 102: (start)
		main exited with status 1: run start[1]
		up 103: (start)
		main exited with status 0: exited
		stop: dead`)
}

// TestExecCondition: what says no skips the start, which is no failure and no
// reason to restart; 255 is a failure.
func TestExecCondition(t *testing.T) {
	s := service.Service{
		StartPre: []service.Command{{Path: "/if", Condition: true}, {Path: "/pre"}},
		Restart:  service.Restart{Mode: service.RestartAlways, Delay: time.Second},
	}
	p := play(t, s).start().up().control(1)
	p.check(`
		start: start-pre, run start-pre[0]
		up 101: (start-pre)
		control exits 1: dead`)
	if p.in.Result != service.SkipCondition {
		t.Errorf("the result is %s", p.in.Result)
	}
	play(t, s).start().up().control(0).up().control(1).check(`
		start: start-pre, run start-pre[0]
		up 101: (start-pre)
		control exits 0: run start-pre[1]
		up 102: (start-pre)
		control exits 1: auto-restart`)
	s.Restart.Mode = service.RestartNo
	p = play(t, s).start().up().control(255)
	p.check(`
		start: start-pre, run start-pre[0]
		up 101: (start-pre)
		control exits 255: failed`)
	if p.in.Result != service.ExitCode {
		t.Errorf("the result is %s", p.in.Result)
	}
}

func TestNotifyReloadAndWatchdog(t *testing.T) {
	p := play(t, service.Service{Type: service.NotifyReload, Watchdog: 30 * time.Second, TimeoutStart: time.Minute})
	p.start().up().notify(Note{Ready: true}).reload().notify(Note{Reloading: true}).notify(Note{Ready: true})
	p.pass(20 * time.Second).notify(Note{Watchdog: true}).wait().main(service.Exit{Signal: 6, Core: true}).check(`
		start: start, run start[0]
		up 101: (start)
		notify: running
		reload: reload, SIGHUP to [101]
		notify: (reload)
		notify: running
		notify: (running)
		after 30s: stop-sigterm, SIGABRT to all
		main was killed by SIGABRT and dumped core: failed`)
	if p.in.Result != service.WatchdogLate {
		t.Errorf("the result is %s", p.in.Result)
	}
}

func (p *script) named(owned bool) *script {
	return p.give(fmt.Sprintf("named %v", owned), Event{Kind: BusNamed, OK: owned})
}

// TestDBus: up with its name, stopped without it; a kill that takes the name
// first is a failure all the same.
func TestDBus(t *testing.T) {
	s := service.Service{Type: service.DBus, BusName: "org.example.A", TimeoutStart: time.Minute, Restart: service.Restart{Mode: service.RestartOnFailure}}
	p := play(t, s).start().up().named(false).named(true)
	p.named(true).named(false).main(killed).up().wait().main(service.Exit{Signal: 15}).check(`
		start: start, run start[0]
		up 101: (start)
		named false: (start)
		named true: running
		named true: (running)
		named false: stop-sigterm, SIGTERM to all
		main was killed by SIGKILL: auto-restart, start, run start[0]
		up 102: (start)
		after 1m0s: stop-sigterm, SIGTERM to all
		main was killed by SIGTERM: auto-restart, start, run start[0]`)
	if p.in.Previous == nil || p.in.Restarts != 2 {
		t.Errorf("%+v", p.in)
	}
}

// TestKilledAndLosesItsName: the reason is the kill, also where the loss of the
// name is heard of first and a helper ends last.
func TestKilledAndLosesItsName(t *testing.T) {
	p := play(t, service.Service{Type: service.DBus, BusName: "org.example.A"}).start().up().named(true)
	p.left = true
	p.named(false).main(killed)
	p.left = false
	p.give("empty", Event{Kind: Emptied}).check(`
		start: start, run start[0]
		up 101: (start)
		named true: running
		named false: stop-sigterm, SIGTERM to all
		main was killed by SIGKILL: (stop-sigterm)
		empty: failed`)
	if !strings.Contains(p.in.Reason, "SIGKILL") || p.in.Result != service.SignalResult {
		t.Errorf("the reason is %q, the result %s", p.in.Reason, p.in.Result)
	}
}

func TestReloadByCommand(t *testing.T) {
	p := play(t, service.Service{Reload: []service.Command{{Path: "/check"}, {Path: "/hup"}}}).start().up()
	p.reload().up().control(0).up().control(2).check(`
		start: start, run start[0]
		up 101: running
		reload: reload, run reload[0]
		up 102: (reload)
		control exits 0: run reload[1]
		up 103: (reload)
		control exits 2: running`)
	if p.in.ReloadError == "" {
		t.Error("the failed reload left no word")
	}
}

func TestStartLimit(t *testing.T) {
	p := play(t, service.Service{Restart: service.Restart{Mode: service.RestartAlways}})
	p.c.StartLimit = service.StartLimit{Interval: 10 * time.Second, Burst: 2}
	p.start().up().main(killed).up().main(killed).check(`
		start: start, run start[0]
		up 101: running
		main was killed by SIGKILL: auto-restart, start, run start[0]
		up 102: running
		main was killed by SIGKILL: auto-restart, failed`)
	if p.in.Result != service.StartLimitHit {
		t.Errorf("the result is %s", p.in.Result)
	}
	p.give("reset", Event{Kind: ResetAsked}).start()
	if p.in.State != service.Start {
		t.Errorf("after reset-failed and start it is %s", p.in.State)
	}
}

func TestBackoff(t *testing.T) {
	p := play(t, service.Service{Restart: service.Restart{
		Mode: service.RestartAlways, Backoff: &service.Backoff{Initial: 10 * time.Second, Max: 30 * time.Second, ResetAfter: 10 * time.Minute},
	}})
	p.start().up()
	var waits []string
	for range 5 {
		p.main(service.Exit{Code: 1})
		if p.in.State == service.AutoRestart {
			if want := "back-off"; !strings.HasPrefix(p.in.Reason, want) {
				t.Errorf("it waits with the reason %q", p.in.Reason)
			}
			waits = append(waits, p.in.Deadline.Sub(p.now).String())
			p.wait()
		} else {
			waits = append(waits, "0s")
		}
		p.up()
	}
	if got := strings.Join(waits, " "); got != "0s 10s 20s 30s 30s" {
		t.Errorf("it waited %s", got)
	}
	p.pass(11 * time.Minute).main(service.Exit{Code: 1})
	if p.in.State != service.Start || p.in.Restarts != 6 {
		t.Errorf("after a long run it is %s, with %d restarts", p.in.State, p.in.Restarts)
	}
}

func TestRestartSteps(t *testing.T) {
	p := play(t, service.Service{Restart: service.Restart{Mode: service.RestartAlways, Delay: time.Second, Steps: 3, MaxDelay: 8 * time.Second}})
	p.start().up()
	var waits []string
	for range 5 {
		p.main(killed)
		waits = append(waits, p.in.Deadline.Sub(p.now).Round(time.Millisecond).String())
		p.wait().up()
	}
	if got := strings.Join(waits, " "); got != "1s 2s 4s 8s 8s" {
		t.Errorf("it waited %s", got)
	}
}

// TestRestartModes is the table of systemd.service(5), Restart=.
func TestRestartModes(t *testing.T) {
	exits := []service.Exit{{}, {Code: 1}, {Signal: 15}, {Signal: 9}, {Signal: 11, Core: true}}
	for mode, want := range map[service.RestartMode]string{
		"": "-----", service.RestartNo: "-----", service.RestartAlways: "+++++", service.RestartOnSuccess: "+-+--",
		service.RestartOnFailure: "-+-++", service.RestartOnAbnormal: "---++", service.RestartOnAbort: "---++", service.RestartOnWatchdog: "-----",
	} {
		got := ""
		for _, e := range exits {
			p := play(t, service.Service{Restart: service.Restart{Mode: mode}}).start().up().main(e)
			if p.in.State == service.Start {
				got += "+"
			} else {
				got += "-"
			}
		}
		if got != want {
			t.Errorf("Restart=%s: %s, want %s", mode, got, want)
		}
	}
}

func TestPreventAndForce(t *testing.T) {
	r := service.Restart{Mode: service.RestartOnFailure, Prevent: service.ExitSet{Codes: []int{3}}, Force: service.ExitSet{Codes: []int{0}, Signals: []int{15}}}
	for want, e := range map[service.State]service.Exit{service.Failed: {Code: 3}, service.Start: {}} {
		if p := play(t, service.Service{Restart: r}).start().up().main(e); p.in.State != want {
			t.Errorf("%s: %s, want %s", ExitWords(e), p.in.State, want)
		}
	}
}

func TestProbes(t *testing.T) {
	ok := func(k ProbeKind) Event { return Event{Kind: Probed, Run: 1, Probe: k, OK: true} }
	bad := func(k ProbeKind) Event { return Event{Kind: Probed, Run: 1, Probe: k, Message: "refused"} }
	tcp := &service.TCPProbe{Port: 80}
	p := play(t, service.Service{
		Restart: service.Restart{Mode: service.RestartAlways}, TimeoutStop: time.Second,
		Startup: &service.Probe{TCP: tcp, Period: time.Second}, Readiness: &service.Probe{TCP: tcp, Period: 5 * time.Second},
		Liveness: &service.Probe{TCP: tcp, Period: 5 * time.Second, FailureThreshold: 2},
	})
	p.start().up().wait()
	if p.in.IsStarted(p.c.Service) || p.in.IsReady(p.c.Service) {
		t.Error("it counts as started before its startup probe has passed")
	}
	p.give("started", ok(StartupProbe)).wait().give("ready", ok(ReadinessProbe))
	if !p.in.IsReady(p.c.Service) {
		t.Error("it is not ready after its readiness probe has passed")
	}
	for range 3 {
		p.give("unready", bad(ReadinessProbe))
	}
	if p.in.IsReady(p.c.Service) || p.in.State != service.Running {
		t.Errorf("after three failures it is %s", p.in.State)
	}
	p.give("unwell", bad(LivenessProbe)).give("unwell", bad(LivenessProbe)).main(service.Exit{Signal: 15}).check(`
		start: start, run start[0]
		up 101: running
		after 0s: probe startup
		started: (running)
		after 0s: probe readiness, probe liveness
		ready: (running)
		unready: (running)
		unready: (running)
		unready: (running)
		unwell: (running)
		unwell: stop-sigterm, SIGTERM to all
		main was killed by SIGTERM: auto-restart, start, run start[0]`)
}

// A service is asked again soon after it was not ready yet, at doubling
// distances up to the period, and in the period once it has been ready.
func TestReadinessIsAskedEagerly(t *testing.T) {
	bad := Event{Kind: Probed, Run: 1, Probe: ReadinessProbe, Message: "refused"}
	p := play(t, service.Service{Readiness: &service.Probe{TCP: &service.TCPProbe{Port: 80}, Period: time.Second}})
	p.start().up().wait()
	for range 6 {
		p.give("unready", bad).wait()
	}
	p.give("ready", Event{Kind: Probed, Run: 1, Probe: ReadinessProbe, OK: true}).wait().give("unready", bad).wait().check(`
		start: start, run start[0]
		up 101: running
		after 0s: probe readiness
		unready: (running)
		after 50ms: probe readiness
		unready: (running)
		after 100ms: probe readiness
		unready: (running)
		after 200ms: probe readiness
		unready: (running)
		after 400ms: probe readiness
		unready: (running)
		after 800ms: probe readiness
		unready: (running)
		after 1s: probe readiness
		ready: (running)
		after 1s: probe readiness
		unready: (running)
		after 1s: probe readiness`)
}

func TestFailedStartDoesNotSpin(t *testing.T) {
	p := play(t, service.Service{Restart: service.Restart{Mode: service.RestartAlways}})
	p.start().give("no program", Event{Kind: SpawnFailed, Run: 1, Proc: 1, Message: "no such file"})
	if p.in.State != service.AutoRestart || p.in.Deadline.Sub(p.now) < 100*time.Millisecond {
		t.Errorf("it is %s and starts again at once", p.in.State)
	}
}

// TestStopOfTheLivingOnly: a container's preStop is not run for one that has
// ended by itself.
func TestStopOfTheLivingOnly(t *testing.T) {
	s := service.Service{Type: service.Simple, Stop: []service.Command{{Path: "/stop"}}, StopAlive: true}
	play(t, s).start().up().main(service.Exit{Code: 1}).check(`
		start: start, run start[0]
		up 101: running
		main exited with status 1: failed`)
	play(t, s).start().up().stop().check(`
		start: start, run start[0]
		up 101: running
		stop: stop, run stop[0]`)
}
