// Package hostapi is the wire of legiond: the paths and bodies of its HTTP+JSON
// API on the host's unix socket. Server and client both speak in these types.
//
//	GET    /v1/host                       Info
//	GET    /v1/groups                     []Group
//	GET    /v1/groups/{name}              Group
//	PUT    /v1/groups/{name}              service.Group in; Group out (defines, keeps on disk, starts if Boot)
//	DELETE /v1/groups/{name}?grace=DUR    202; stops, then forgets; Watch tells when it is gone
//	POST   /v1/groups/{name}/start        Result (also stop, restart, reload, reset-failed); ?wait=false returns at once,
//	                                      ?mode= is the job mode of systemctl(1)
//	POST   /v1/groups/{name}/kill         Result; ?signal=NUMBER&whom=main|control|all
//	POST   /v1/groups/{name}/freeze       Result; all processes are suspended, until /thaw or anything that is done to it
//	POST   /v1/groups/{name}/clean        Result; ?what=configuration|state|cache|logs|runtime|fdstore|all, of a group that is down
//	POST   /v1/groups/{name}/exec         runs a command beside a service's process; see ExecRequest
//	POST   /v1/groups/{name}/attach       writes to what a service reads from, follows its terminal; see AttachRequest
//	GET    /v1/groups/{name}/explain      Explanation
//	GET    /v1/groups/{name}/logs         CRI log lines; see LogQuery
//	GET    /metrics                       the host, its units and legiond itself in Prometheus' text format
//	GET    /v1/watch                      stream of Event, one JSON document a line
//	POST   /v1/reload                     reads the unit files again; ReloadResult
//	POST   /v1/reexec                     executes legiond's program anew in the same process; Info.StartedAt tells when that is done
//	POST   /v1/poweroff                   stops all groups in reverse order, then legiond ends; Result when all are down;
//	                                      ?action=poweroff|reboot|halt|exit[-force|-immediate]&status=NUMBER&argument=TEXT
//
// Errors are status 4xx/5xx with an Error body.
package hostapi

import (
	"time"

	"legion.dev/legion/internal/service"
)

// Info describes a host.
type Info struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
	// BootID is the kernel's; StartedAt is this legiond's.
	BootID    string    `json:"bootID"`
	StartedAt time.Time `json:"startedAt"`
	// Cgroup is how processes are tracked: "v2", or "none" with the reason
	// in CgroupReason.
	Cgroup       string   `json:"cgroup"`
	CgroupReason string   `json:"cgroupReason,omitempty"`
	StateDir     string   `json:"stateDir"`
	UnitPath     []string `json:"unitPath"`
	// Problems are what an operator should know about the host as a whole:
	// a full log disk, unit files that could not be read.
	Problems []service.Warning `json:"problems,omitempty"`
}

// Group is a group with its status.
type Group struct {
	Spec   service.Group       `json:"spec"`
	Status service.GroupStatus `json:"status"`
	// ActiveState and SubState are systemd's view of the status.
	ActiveState string `json:"activeState"`
	SubState    string `json:"subState"`
	// Job is what is being done to it, or waits to be.
	Job *Job `json:"job,omitempty"`
}

// Job brings a group where somebody wants it.
type Job struct {
	ID   uint64 `json:"id"`
	Type string `json:"type"` // start, stop, restart or reload
	// Running is false while it waits for the jobs of other groups.
	Running bool `json:"running"`
	// By is who asked for it.
	By string `json:"by,omitempty"`
}

// EventType says what an Event is about.
type EventType string

// The types of event.
const (
	// Synced ends the first list that a watch sends.
	Synced EventType = "synced"
	// Changed carries a group's new status.
	Changed EventType = "changed"
	// Removed: the group is gone, with all its processes.
	Removed EventType = "removed"
)

// Event is one line of a watch. A watch begins with one Changed for each group,
// then Synced, then what happens.
type Event struct {
	Type EventType `json:"type"`
	// Name and Group are set for Changed and Removed; of a group that is gone it
	// is the last state, of which nothing else may have told.
	Name  string `json:"name,omitempty"`
	Group *Group `json:"group,omitempty"`
}

// Result answers a request that changes something.
type Result struct {
	// Changed is false where everything was already as asked.
	Changed bool   `json:"changed"`
	Message string `json:"message,omitempty"`
}

// ReloadResult tells what reading the unit files again has found.
type ReloadResult struct {
	Added   []string          `json:"added,omitempty"`
	Changed []string          `json:"changed,omitempty"`
	Removed []string          `json:"removed,omitempty"`
	Errors  []service.Warning `json:"errors,omitempty"`
	// Circles are those of Errors that are orders which run in a circle.
	Circles []service.Warning `json:"circles,omitempty"`
}

// Explanation says on one screen why a group is in its state.
type Explanation struct {
	Group Group `json:"group"`
	// Why, Asked, Waits, Next: why it is so, who asked for it, what it waits
	// for, what would happen next. Each a few plain sentences.
	Why   []string `json:"why"`
	Asked []string `json:"asked,omitempty"`
	Waits []string `json:"waits,omitempty"`
	Next  []string `json:"next,omitempty"`
	// History are the last transitions, oldest first.
	History []Transition `json:"history,omitempty"`
}

// Transition is one entry of the event journal.
type Transition struct {
	At      time.Time     `json:"at"`
	Group   string        `json:"group"`
	Service string        `json:"service"`
	Run     uint64        `json:"run,omitempty"`
	From    service.State `json:"from"`
	To      service.State `json:"to"`
	Reason  string        `json:"reason"`
}

// Outside names the log of what programs that are in no unit have said on
// /dev/log and to systemd's journal.
const Outside = "syslog"

// LogQuery is the query of /logs; every field is a parameter of that name.
type LogQuery struct {
	// Service names one service of the group; empty is the only one, or all.
	Service string
	Follow  bool
	// Tail is how many last lines; negative is all.
	Tail int
	// Since leaves out older lines.
	Since time.Time
	// Previous shows the run before the newest one; Run (not 0) names one.
	Previous bool
	Run      uint64
	// LimitBytes ends after so many bytes; 0 is no limit.
	LimitBytes int64
}

// ExecProtocol is the value of the Upgrade header of /exec.
const ExecProtocol = "legion-exec"

// ExecRequest asks for a command in the surroundings of a service's main
// process: its namespaces, cgroup, user, working directory and environment. The
// answer is 101. Then the client sends one byte, and with it (SCM_RIGHTS) the
// three standard descriptors of the process; the host answers with two lines of
// ExecEvent: the start and the end. A client that closes the connection before
// has the process killed.
type ExecRequest struct {
	// Service names one service of the group; empty is the only one.
	Service string   `json:"service,omitempty"`
	Argv    []string `json:"argv"`
	// TTY: the first descriptor is a terminal, to be the process's own.
	TTY bool `json:"tty,omitempty"`
}

// ExecEvent is one line of the answer; one field is set.
type ExecEvent struct {
	PID   int           `json:"pid,omitempty"`
	Exit  *service.Exit `json:"exit,omitempty"`
	Error *Error        `json:"error,omitempty"`
}

// AttachProtocol is the value of the Upgrade header of /attach.
const AttachProtocol = "legion-attach"

// AttachRequest asks for the standard input or the terminal of a service that
// has one (service.Console). The answer is 101. Then the client sends lines of
// AttachInput and the host lines of AttachOutput, of which the first says that
// the client is attached, until the client closes the connection or the run is
// over. What a service without a terminal writes is in
// its log alone.
type AttachRequest struct {
	// Service names one service of the group; empty is the only one.
	Service string `json:"service,omitempty"`
	// Stdin: the client wants to write.
	Stdin bool `json:"stdin,omitempty"`
}

// AttachInput is one line to the host: what to write, the size of the client's
// terminal, or that the input is at its end (service.Console says what becomes
// of that).
type AttachInput struct {
	Data    []byte `json:"data,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
	Close   bool   `json:"close,omitempty"`
}

// AttachOutput is one line from the host: that whatever comes from now on is
// sent, what came from the terminal, that the run is over, or why there is
// nothing to attach to. A connection that ends without one of the latter two was
// lost.
type AttachOutput struct {
	Attached bool   `json:"attached,omitempty"`
	Data     []byte `json:"data,omitempty"`
	Ended    bool   `json:"ended,omitempty"`
	Error    *Error `json:"error,omitempty"`
}

// Error is the body of a failed request.
type Error struct {
	// Message says what could not be done, to what, and why.
	Message string `json:"message"`
	// Hint says what to do next, where that is known.
	Hint string `json:"hint,omitempty"`
	// Code is a short machine word: "not-found", "invalid", "conflict",
	// "failed", "timeout", "denied".
	Code string `json:"code"`
}

func (e *Error) Error() string { return e.Message }
