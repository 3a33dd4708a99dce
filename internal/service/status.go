package service

import (
	"slices"
	"time"
)

// State is where a service is in its life. The names are systemd's sub-states.
type State string

// The states of a service.
const (
	Dead         State = "dead"
	StartPre     State = "start-pre"
	Start        State = "start"
	StartPost    State = "start-post"
	Running      State = "running"
	Exited       State = "exited" // done, and RemainAfterExit
	Reload       State = "reload"
	Stop         State = "stop"         // ExecStop runs
	StopSigterm  State = "stop-sigterm" // asked to end
	StopSigkill  State = "stop-sigkill"
	StopPost     State = "stop-post"
	FinalSigterm State = "final-sigterm" // what ExecStopPost left behind is asked to end
	FinalSigkill State = "final-sigkill"
	AutoRestart  State = "auto-restart" // waits for the restart delay
	Failed       State = "failed"
)

// Result is how the last life of a service went; systemd's names.
type Result string

// The results.
const (
	Success       Result = "success"
	ExitCode      Result = "exit-code"
	SignalResult  Result = "signal"
	CoreDump      Result = "core-dump"
	Timeout       Result = "timeout"
	WatchdogLate  Result = "watchdog"
	StartLimitHit Result = "start-limit-hit"
	Resources     Result = "resources" // could not be started
	Protocol      Result = "protocol"  // broke its Type='s contract
	OOMKill       Result = "oom-kill"
	SkipCondition Result = "exec-condition" // its ExecCondition= has left the start out
	Unhealthy     Result = "unhealthy"      // its liveness or startup probe failed
)

// Run is one life of one process, from start to exit. A restart is a new run
// with a new number; numbers only grow, also over restarts of legiond.
type Run struct {
	Number uint64 `json:"number"`
	PID    int    `json:"pid,omitempty"`
	// StartTicks is field 22 of /proc/PID/stat: with the PID it names the
	// process for as long as the machine is up.
	StartTicks uint64    `json:"startTicks,omitempty"`
	Started    time.Time `json:"started"`
	// Exit is nil while the process lives.
	Exit *Exit `json:"exit,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	At time.Time `json:"at"`
	// Code is the exit status, when Signal is 0 and Unknown is false.
	Code   int  `json:"code"`
	Signal int  `json:"signal,omitempty"`
	Core   bool `json:"core,omitempty"`
	OOM    bool `json:"oom,omitempty"`
	// Unknown: the process was not Legion's child any more and the kernel
	// could not tell.
	Unknown bool `json:"unknown,omitempty"`
	// Message is what the run itself has said of its end (Service.TerminationMessage).
	Message string `json:"message,omitempty"`
}

// Status is what is known of one service. The host is its only writer.
type Status struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Since is when State was entered.
	Since  time.Time `json:"since"`
	Result Result    `json:"result,omitempty"`
	// Reason says in one sentence why the service is in this state.
	Reason string `json:"reason,omitempty"`

	// Main is the newest run of the main process, Previous the one before.
	Main     *Run `json:"main,omitempty"`
	Previous *Run `json:"previous,omitempty"`
	// ControlPID is the running helper command (ExecReload …), 0 for none.
	ControlPID int `json:"controlPID,omitempty"`

	// Restarts counts automatic restarts since the last start by request.
	Restarts int `json:"restarts"`
	// NextRestart is when AutoRestart ends.
	NextRestart *time.Time `json:"nextRestart,omitempty"`

	// Ready: started as its Type says and, where it has a readiness probe,
	// the probe succeeds.
	Ready bool `json:"ready"`
	// Ephemeral is that of Service.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// Held: its start waits for other services of the group (Service.Stage).
	Held bool `json:"held,omitempty"`
	// Again is why it is to start again with all others of the group (Restart.All
	// of Service), and has not yet.
	Again string `json:"again,omitempty"`
	// Started: the startup probe (if any) has succeeded.
	Started bool `json:"started"`
	// Probe is the last word of a failing probe.
	Probe string `json:"probe,omitempty"`
	// Text is the service's own STATUS= message.
	Text string `json:"text,omitempty"`

	Cgroup string `json:"cgroup,omitempty"`
	// LogDir holds the service's log files.
	LogDir string `json:"logDir,omitempty"`
	// Bounds are the limits that were set last for what runs, and Fixed is that
	// of Service at its start; both of pods alone.
	Bounds *Limits `json:"bounds,omitempty"`
	Fixed  string  `json:"fixed,omitempty"`
	// Lost names the protections and limits that this machine cannot give.
	Lost []string `json:"lost,omitempty"`
}

// GroupStatus is what is known of one group.
type GroupStatus struct {
	Name string `json:"name"`
	// Wanted: somebody (boot, a request, a dependency) wants it to run.
	Wanted bool `json:"wanted"`
	// By says who wants or stopped it last, in words.
	By       string    `json:"by,omitempty"`
	Services []Status  `json:"services"`
	Warnings []Warning `json:"warnings,omitempty"`
	// Frozen: its processes are suspended until somebody lets them go on.
	Frozen bool `json:"frozen,omitempty"`
	// Trigger is set for a timer, path or socket.
	Trigger *TriggerStatus `json:"trigger,omitempty"`
	// Deleting: it is being stopped for good.
	Deleting bool `json:"deleting,omitempty"`
}

// Alive says whether a process of the service may be running.
func (s State) Alive() bool {
	switch s {
	case Dead, Exited, AutoRestart, Failed:
		return false
	default:
		return true
	}
}

// Has says whether the exit is in the set. An unknown exit is in none.
func (s ExitSet) Has(e Exit) bool {
	if e.Unknown {
		return false
	}
	if e.Signal != 0 {
		return slices.Contains(s.Signals, e.Signal)
	}
	return slices.Contains(s.Codes, e.Code)
}
