package service

import "time"

// Timer is what makes a group a timer unit (systemd.timer(5)).
type Timer struct {
	// Spans since: the timer came up, the machine booted, legiond started, the
	// unit last started, the unit last ended.
	OnActive       []time.Duration `json:"onActive,omitempty"`
	OnBoot         []time.Duration `json:"onBoot,omitempty"`
	OnStartup      []time.Duration `json:"onStartup,omitempty"`
	OnUnitActive   []time.Duration `json:"onUnitActive,omitempty"`
	OnUnitInactive []time.Duration `json:"onUnitInactive,omitempty"`
	// OnCalendar are expressions of systemd.time(7), normalised.
	OnCalendar []string `json:"onCalendar,omitempty"`
	// OnClockChange: elapse when the machine's clock is set.
	OnClockChange bool `json:"onClockChange,omitempty"`
	// Persistent: what OnCalendar missed while the machine was off is caught
	// up with.
	Persistent bool `json:"persistent,omitempty"`
	// RandomizedDelay is the most by which an elapse is put off; how much is
	// the same on one host for one elapse, and with FixedRandomDelay for all.
	RandomizedDelay  time.Duration `json:"randomizedDelay,omitempty"`
	FixedRandomDelay bool          `json:"fixedRandomDelay,omitempty"`
	// Unit is the group that is started.
	Unit string `json:"unit"`
	// EndsAfterElapse is RemainAfterElapse=no: the timer goes down once it
	// cannot elapse again.
	EndsAfterElapse bool `json:"endsAfterElapse,omitempty"`
}

// PathCondition is one line of a path unit: a directive of systemd.path(5)
// without its "Path" (Exists, ExistsGlob, Changed, Modified, and
// DirectoryNotEmpty), and what it looks at.
type PathCondition struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
}

// Path is what makes a group a path unit (systemd.path(5)).
type Path struct {
	Conditions []PathCondition `json:"conditions"`
	// MakeDirectory makes the directories that are looked at.
	MakeDirectory bool   `json:"makeDirectory,omitempty"`
	DirectoryMode uint32 `json:"directoryMode,omitempty"` // 0 is 0755
	Unit          string `json:"unit"`
	// Limit bounds how often the unit is started; beyond it the path fails.
	Limit StartLimit `json:"limit,omitzero"`
}

// The kinds of socket, as in the names of the Listen…= directives.
const (
	ListenStream   = "stream"
	ListenDatagram = "datagram"
	ListenSeqpkt   = "seqpacket"
	ListenFIFO     = "fifo"
)

// Listen is one address of a socket unit.
type Listen struct {
	Kind    string `json:"kind"`
	Address string `json:"address"`
}

// Socket is what makes a group a socket unit (systemd.socket(5)).
type Socket struct {
	Listen []Listen `json:"listen"`
	// Accept: each connection has an instance of the template Unit of its own.
	Accept bool   `json:"accept,omitempty"`
	Unit   string `json:"unit"`
	// Name is what LISTEN_FDNAMES says of its descriptors.
	Name  string `json:"name,omitempty"`
	User  string `json:"user,omitempty"`
	Group string `json:"group,omitempty"`
	// Mode of sockets and FIFOs in the file system, DirectoryMode of the
	// directories made for them; 0 is 0666 and 0755.
	Mode          uint32   `json:"mode,omitempty"`
	DirectoryMode uint32   `json:"directoryMode,omitempty"`
	RemoveOnStop  bool     `json:"removeOnStop,omitempty"`
	Symlinks      []string `json:"symlinks,omitempty"`
	// MaxConnections bounds the instances of Accept; 0 is 64.
	MaxConnections int `json:"maxConnections,omitempty"`
	// MaxConnectionsPerSource bounds those from one address, or of one user of a
	// socket in the file system; 0 is no bound.
	MaxConnectionsPerSource int `json:"maxConnectionsPerSource,omitempty"`

	Backlog              int    `json:"backlog,omitempty"`      // 0 is the most
	BindIPv6Only         string `json:"bindIPv6Only,omitempty"` // default, both, ipv6-only
	FreeBind             bool   `json:"freeBind,omitempty"`
	ReusePort            bool   `json:"reusePort,omitempty"`
	KeepAlive            bool   `json:"keepAlive,omitempty"`
	NoDelay              bool   `json:"noDelay,omitempty"`
	Broadcast            bool   `json:"broadcast,omitempty"`
	PassCredentials      bool   `json:"passCredentials,omitempty"`
	NetworkNamespacePath string `json:"networkNamespacePath,omitempty"`
	// Limit bounds how often the unit is started; beyond it the socket fails.
	Limit StartLimit `json:"limit,omitzero"`
	// PollLimit bounds how often it is seen that something waits; beyond it that
	// waits for the rest of the interval. Zero is the default, less is no bound.
	PollLimit StartLimit `json:"pollLimit,omitzero"`
}

// Trigger says whether the group starts another one, and has no service itself.
func (g *Group) Trigger() bool { return g.Timer != nil || g.Path != nil || g.Socket != nil }

// Triggers names the group that it starts; empty for one that starts none.
func (g *Group) Triggers() string {
	switch {
	case g.Timer != nil:
		return g.Timer.Unit
	case g.Path != nil:
		return g.Path.Unit
	case g.Socket != nil:
		return g.Socket.Unit
	}
	return ""
}

// TriggerState is where a timer, path or socket is; systemd's sub-states.
type TriggerState string

// The states of a trigger.
const (
	TriggerDead      TriggerState = "dead"
	TriggerWaiting   TriggerState = "waiting"   // for its time, or its path
	TriggerListening TriggerState = "listening" // for its sockets
	TriggerRunning   TriggerState = "running"   // its unit runs
	TriggerElapsed   TriggerState = "elapsed"   // there is no next time
	TriggerFailed    TriggerState = "failed"
)

// TriggerStatus is what is known of a timer, path or socket.
type TriggerStatus struct {
	State TriggerState `json:"state"`
	// Reason says in one sentence why it is in this state.
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Next is when a timer elapses, Last when its unit was last started by it.
	Next time.Time `json:"next,omitzero"`
	Last time.Time `json:"last,omitzero"`
	// Accepted counts the connections that were handed to instances.
	Accepted uint64 `json:"accepted,omitempty"`
}
