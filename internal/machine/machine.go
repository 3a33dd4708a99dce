// Package machine is the life of one service as a table: Step takes an
// instance, an event and the time, and gives back the next instance and what
// is to be done. It does no I/O, reads no clock and starts no goroutine.
//
// # The life of a service
//
//	dead ─> start-pre ─> start ─> start-post ─> running ─> stop ─> stop-sigterm
//	  ^                                                               │
//	  └─ auto-restart <─ final-sigkill <─ final-sigterm <─ stop-post <┘ (stop-sigkill)
//
// A state whose commands or processes are absent is passed through at once.
// One life, from start-pre to dead, is a run and has a number; every process in
// it has a number of its own. Events name the process or the run they speak of,
// so that late news of an earlier one changes nothing.
//
// The rules are those of systemd.service(5) and systemd.kill(5), and for
// probes and back-off those of the kubelet.
package machine

import (
	"time"

	"legion.dev/legion/internal/service"
)

// Config is what the machine is told about a service; it stays the same while
// the definition does.
type Config struct {
	Service    *service.Service
	StartLimit service.StartLimit
	// Grace, where positive, bounds a stop in place of TimeoutStop.
	Grace time.Duration
}

// Instance is all that is known of one service. It is plain data: written to
// disk and read again, it goes on where it was.
type Instance struct {
	State  service.State  `json:"state"`
	Since  time.Time      `json:"since"`
	Reason string         `json:"reason,omitempty"`
	Result service.Result `json:"result,omitempty"`

	// Deadline ends the state by force; leaving the state clears it. In
	// AutoRestart it is the time of the restart.
	Deadline time.Time `json:"deadline,omitzero"`
	// Poll is when to look again for the main process of Type=forking.
	Poll time.Time `json:"poll,omitzero"`
	// Gone is since when Type=forking's PID file has named a process that has
	// ended; it may yet name another one.
	Gone time.Time `json:"gone,omitzero"`
	// Watchdog and RuntimeEnd are cleared on leaving Running and Reload.
	Watchdog   time.Time `json:"watchdog,omitzero"`
	RuntimeEnd time.Time `json:"runtimeEnd,omitzero"`
	// WatchdogEvery is what the service asked for in place of WatchdogSec=.
	WatchdogEvery time.Duration `json:"watchdogEvery,omitempty"`
	// StopBy is when the grace period of the stop under way ends.
	StopBy time.Time `json:"stopBy,omitzero"`

	// Run is the number of the newest life, Procs that of the newest process.
	Run   uint64 `json:"run"`
	Procs uint64 `json:"procs"`
	// Main and Control are the processes that live or are being started
	// (PID 0); nil for none.
	Main    *Proc `json:"main,omitempty"`
	Control *Proc `json:"control,omitempty"`
	// MainUnknown: Type=forking left no main process to be told from others;
	// the service lives as long as its cgroup has processes.
	MainUnknown bool `json:"mainUnknown,omitempty"`
	// Newest and Previous are the last two runs of the main process.
	Newest   *service.Run `json:"newest,omitempty"`
	Previous *service.Run `json:"previous,omitempty"`

	// Restarts counts automatic restarts; Backoff is the next step of it.
	Restarts int `json:"restarts,omitempty"`
	Backoff  int `json:"backoff,omitempty"`
	// Starts are the starts inside the start limit's interval.
	Starts []time.Time `json:"starts,omitempty"`

	// Stopping: somebody asked for the stop; no automatic restart follows.
	Stopping bool `json:"stopping,omitempty"`
	// Again: start once more as soon as the stop under way is done.
	Again bool `json:"again,omitempty"`
	// Stuck: a process outlived SIGKILL; nothing is started beside it by itself.
	Stuck bool `json:"stuck,omitempty"`
	// SpawnFailed: the last process could not be started.
	SpawnFailed bool `json:"spawnFailed,omitempty"`
	// ReloadError is why the last reload failed; empty if it did not.
	ReloadError string `json:"reloadError,omitempty"`
	// Reloading: the service itself said that it reloads.
	Reloading bool `json:"reloading,omitempty"`

	// Missed: legiond was away during the start of Type=notify, and a READY=1
	// that came just before may be lost.
	Missed bool `json:"missed,omitempty"`

	// Text is the service's own STATUS=.
	Text string `json:"text,omitempty"`

	Startup   Health `json:"startup,omitzero"`
	Readiness Health `json:"readiness,omitzero"`
	Liveness  Health `json:"liveness,omitzero"`
	// Probe is the last word of a failing probe.
	Probe string `json:"probe,omitempty"`
}

// Proc is one process of a service.
type Proc struct {
	ID uint64 `json:"id"`
	// Kind is the state whose command it runs, Index which of its commands.
	Kind       service.State `json:"kind"`
	Index      int           `json:"index,omitempty"`
	PID        int           `json:"pid,omitempty"`
	StartTicks uint64        `json:"startTicks,omitempty"`
}

// Health is what one probe has found.
type Health struct {
	// Next is when to probe; zero while the probe is off.
	Next time.Time `json:"next,omitzero"`
	// Passed: enough successes, and not enough failures since.
	Passed    bool `json:"passed,omitempty"`
	Successes int  `json:"successes,omitempty"`
	Failures  int  `json:"failures,omitempty"`
}

// Kind is what happened.
type Kind int

// The kinds of event.
const (
	StartAsked Kind = iota
	StopAsked
	RestartAsked
	ReloadAsked
	ResetAsked    // forget failures (systemctl reset-failed)
	Spawned       // the process Proc was started; PID, StartTicks
	SpawnFailed   // it was not; Message
	MainExited    // Exit
	ControlExited // Exit
	MainFound     // PID, StartTicks: Type=forking's or MAINPID='s main process
	MainMissing   // Message: not found (yet)
	Emptied       // the cgroup has no process any more
	Notified      // PID sent Note
	Probed        // Probe answered OK, or not with Message
	BusNamed      // BusName= has an owner on the bus (OK), or none
	Alarmed       // NextAlarm is due
	kinds
)

var kindNames = [kinds]string{
	"start asked", "stop asked", "restart asked", "reload asked", "reset asked", "spawned", "spawn failed",
	"main exited", "control exited", "main found", "main missing", "emptied", "notified", "probed", "bus named", "alarm",
}

func (k Kind) String() string { return kindNames[k] }

// Event is something that happened to a service.
type Event struct {
	Kind Kind
	// Run is the life the event is about; 0 is whichever is the newest.
	Run uint64
	// Proc is the process the event is about (Spawned, SpawnFailed). For an
	// exit it decides between MainExited and ControlExited.
	Proc       uint64
	PID        int
	StartTicks uint64
	Exit       service.Exit
	Message    string
	// By says who asked, in words ("request by uid 0", "boot").
	By string
	// Gone: what the PID file of this life names has ended (MainMissing); Exit.
	Gone bool
	// Untold: there are exits of which nothing is told yet; that of what is Gone
	// may be among them.
	Untold bool
	// Left: the service's cgroup has processes at this moment.
	Left bool
	// Grace, where not nil, bounds the stop asked for.
	Grace *time.Duration
	// KeepCount: a start that continues an earlier life (a reboot): it counts
	// as a restart instead of starting the count anew.
	KeepCount bool
	Note      Note
	Probe     ProbeKind
	OK        bool
}

// Note is an sd_notify(3) message.
type Note struct {
	Ready, Reloading, Stopping bool
	Watchdog, WatchdogTrigger  bool
	MainPID                    int
	WatchdogEvery              time.Duration
	ExtendTimeout              time.Duration
	// Text is STATUS=, where HasText.
	Text    string
	HasText bool
}

// ProbeKind names one of a service's probes.
type ProbeKind int

// The probes.
const (
	StartupProbe ProbeKind = iota
	ReadinessProbe
	LivenessProbe
)

func (k ProbeKind) String() string { return [...]string{"startup", "readiness", "liveness"}[k] }

// Effect is something to be done. The caller carries effects out in order.
type Effect interface{ effect() }

// Spawn starts a process of the run; Spawned or SpawnFailed answers.
type Spawn struct {
	Run  uint64
	Proc uint64
	Main bool
	// Kind is the state whose command it is, Index which of its commands.
	Kind  service.State
	Index int
}

// Signal sends Number to the main and control process, and where All is set to
// every process in the cgroup, each once. With Number 9 and All it is
// cgroup.kill. Cont and Hup send SIGCONT and SIGHUP after it.
type Signal struct {
	Number    int
	All       bool
	Cont, Hup bool
	// PIDs are the processes known to the machine.
	PIDs []int
}

// FindMain looks for the main process of a Type=forking service (its PID file,
// or a guess), or for PID where it is not 0; MainFound or MainMissing answers.
type FindMain struct {
	Run uint64
	PID int
}

// RunProbe asks one probe; Probed answers.
type RunProbe struct {
	Run  uint64
	Kind ProbeKind
}

// CleanUp removes what a run leaves behind: cgroup, runtime directories, PID
// file.
type CleanUp struct {
	Run uint64
	// Restarting: another run follows.
	Restarting bool
}

// Transition tells that the state has changed, and why.
type Transition struct {
	Run      uint64
	From, To service.State
	Reason   string
	// Result is how the life has gone so far.
	Result service.Result
}

func (Spawn) effect()      {}
func (Signal) effect()     {}
func (FindMain) effect()   {}
func (RunProbe) effect()   {}
func (CleanUp) effect()    {}
func (Transition) effect() {}

// New gives an instance that was never started.
func New(now time.Time) Instance {
	return Instance{State: service.Dead, Since: now, Reason: "not started yet"}
}

// Step takes an event in. What comes back depends on the arguments alone; the
// instance that was handed in is not changed.
func Step(c Config, in Instance, ev Event, now time.Time) (Instance, []Effect) {
	if ev.Run != 0 && ev.Run != in.Run {
		return in, nil
	}
	s := &step{Config: c, Instance: in.clone(), ev: ev, now: now}
	if !s.resolve() {
		return in, nil
	}
	row, ok := table[s.State]
	if !ok {
		return in, nil
	}
	row[s.ev.Kind].do(s)
	return s.Instance, s.effects
}

// Resume gives the effects of the state that is resumed by a legiond which does
// not know whether the one before had come to them: a signal is sent again.
func Resume(c Config, in Instance, now time.Time) []Effect {
	switch in.State {
	case service.StopSigterm, service.StopSigkill, service.FinalSigterm, service.FinalSigkill:
		s := &step{Config: c, Instance: in.clone(), now: now}
		s.sendSignal()
		return s.effects
	}
	return nil
}

// NextAlarm is when Alarmed is due; zero is never.
func (in *Instance) NextAlarm() time.Time {
	var next time.Time
	for _, t := range [...]time.Time{
		in.Deadline, in.Poll, in.Watchdog, in.RuntimeEnd,
		in.Startup.Next, in.Readiness.Next, in.Liveness.Next,
	} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

func (in Instance) clone() Instance {
	in.Main, in.Control = clone(in.Main), clone(in.Control)
	in.Newest, in.Previous = clone(in.Newest), clone(in.Previous)
	in.Starts = append([]time.Time(nil), in.Starts...)
	return in
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// resolve turns an exit into that of the main or the control process, and
// refuses news of processes that are not this run's.
func (s *step) resolve() bool {
	main := s.Main != nil && s.ev.Proc == s.Main.ID
	control := s.Control != nil && s.ev.Proc == s.Control.ID
	switch s.ev.Kind {
	case MainExited, ControlExited:
		s.ev.Kind = ControlExited
		if main {
			s.ev.Kind = MainExited
		}
		return main || control
	case Spawned, SpawnFailed:
		return main || control
	}
	return s.ev.Kind >= 0 && s.ev.Kind < kinds
}
