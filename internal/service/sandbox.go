package service

// Sandbox is what the processes of a service are kept from; the fields are the
// directives of systemd.exec(5) of the same names. What the machine cannot give
// is left out and named in Status.Lost.
type Sandbox struct {
	PrivateTmp     bool `json:"privateTmp,omitempty"`
	PrivateDevices bool `json:"privateDevices,omitempty"`
	PrivateMounts  bool `json:"privateMounts,omitempty"`
	PrivateNetwork bool `json:"privateNetwork,omitempty"`
	PrivateIPC     bool `json:"privateIPC,omitempty"`

	PrivateUsers string `json:"privateUsers,omitempty"` // "self", "identity", "full"

	ProtectSystem string `json:"protectSystem,omitempty"` // "yes", "full", "strict"
	ProtectHome   string `json:"protectHome,omitempty"`   // "yes", "read-only", "tmpfs"

	ProtectControlGroups  bool   `json:"protectControlGroups,omitempty"`
	ProtectKernelModules  bool   `json:"protectKernelModules,omitempty"`
	ProtectKernelTunables bool   `json:"protectKernelTunables,omitempty"`
	ProtectKernelLogs     bool   `json:"protectKernelLogs,omitempty"`
	ProtectHostname       bool   `json:"protectHostname,omitempty"`
	ProtectClock          bool   `json:"protectClock,omitempty"`
	ProtectProc           string `json:"protectProc,omitempty"` // "noaccess", "invisible", "ptraceable"
	ProcSubset            string `json:"procSubset,omitempty"`  // "pid"

	// Paths are absolute; "-" in front: it may be missing; "+" (behind it): it
	// is below RootDirectory.
	ReadWritePaths    []string `json:"readWritePaths,omitempty"`
	ReadOnlyPaths     []string `json:"readOnlyPaths,omitempty"`
	InaccessiblePaths []string `json:"inaccessiblePaths,omitempty"`
	ExecPaths         []string `json:"execPaths,omitempty"`
	NoExecPaths       []string `json:"noExecPaths,omitempty"`
	Binds             []Bind   `json:"binds,omitempty"`
	// TemporaryFileSystem are "path" or "path:options" of tmpfs(5).
	TemporaryFileSystem []string `json:"temporaryFileSystem,omitempty"`
	// MountAPIVFS gives a RootDirectory /proc, /sys, /dev and /run.
	MountAPIVFS bool `json:"mountAPIVFS,omitempty"`
	// MountFlags is "shared", "slave" (also if empty) or "private".
	MountFlags string `json:"mountFlags,omitempty"`

	// RestrictNamespaces are the kinds that are allowed; nil is all of them.
	RestrictNamespaces     *[]string `json:"restrictNamespaces,omitempty"`
	RestrictRealtime       bool      `json:"restrictRealtime,omitempty"`
	RestrictSUIDSGID       bool      `json:"restrictSUIDSGID,omitempty"`
	LockPersonality        bool      `json:"lockPersonality,omitempty"`
	MemoryDenyWriteExecute bool      `json:"memoryDenyWriteExecute,omitempty"`
	// RestrictAddressFamilies are AF_… names; with FamiliesDenied those that
	// are refused, else the only ones. Nil is no restriction.
	RestrictAddressFamilies *[]string `json:"restrictAddressFamilies,omitempty"`
	FamiliesDenied          bool      `json:"familiesDenied,omitempty"`

	// SystemCallFilter are the values of the lines, in their order.
	SystemCallFilter        []string `json:"systemCallFilter,omitempty"`
	SystemCallErrorNumber   string   `json:"systemCallErrorNumber,omitempty"` // "EPERM", "kill"
	SystemCallArchitectures []string `json:"systemCallArchitectures,omitempty"`
	// SystemCalls is a filter by rules, beside the others.
	SystemCalls *CallFilter `json:"systemCalls,omitempty"`

	SecureBits  []string `json:"secureBits,omitempty"`
	KeyringMode string   `json:"keyringMode,omitempty"` // "inherit" (also if empty), "private", "shared"
	Personality string   `json:"personality,omitempty"` // "x86", "x86-64", "arm", "arm64"

	// NoMounts and NoFilters: the machine has no mount namespaces, or no
	// filters of system calls; what is left is to be given without.
	NoMounts  bool `json:"noMounts,omitempty"`
	NoFilters bool `json:"noFilters,omitempty"`
}

// CallFilter is a filter of system calls as the OCI's runtime-spec has it
// (linux.seccomp), with what is done as the kernel's number (seccomp(2)).
type CallFilter struct {
	// Default is for calls without a rule that applies.
	Default uint32 `json:"default"`
	// Secondary lets the machine's second architecture call too, by the same
	// rules.
	Secondary bool       `json:"secondary,omitempty"`
	Rules     []CallRule `json:"rules,omitempty"`
}

// CallRule is what is done with some calls where all conditions hold; of several
// the first counts, but one without a condition goes before all others.
type CallRule struct {
	Calls []string        `json:"calls"`
	Do    uint32          `json:"do"`
	Where []CallCondition `json:"where,omitempty"`
}

// CallCondition compares an argument, counted from 0.
type CallCondition struct {
	Arg int `json:"arg"`
	// Is is "!=", "<", "<=", "==", ">=", ">", or "&", which compares the
	// argument's bits of Mask.
	Is    string `json:"is"`
	Mask  uint64 `json:"mask,omitempty"`
	Value uint64 `json:"value"`
}

// Bind is one entry of BindPaths= or BindReadOnlyPaths=.
type Bind struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Shallow leaves out what is mounted below the source ("norbind").
	Shallow  bool `json:"shallow,omitempty"`
	Optional bool `json:"optional,omitempty"`
}

// Scheduling is how the kernel shares out processors and disks to the service;
// the fields are the directives of systemd.exec(5). Empty and nil change nothing.
type Scheduling struct {
	Policy      string `json:"policy,omitempty"` // "other", "batch", "idle", "fifo", "rr"
	Priority    int    `json:"priority,omitempty"`
	ResetOnFork bool   `json:"resetOnFork,omitempty"`
	// Affinity are the numbers of the processors to run on.
	Affinity   []int  `json:"affinity,omitempty"`
	IOClass    string `json:"ioClass,omitempty"` // "none", "realtime", "best-effort", "idle"
	IOPriority *int   `json:"ioPriority,omitempty"`
	// TimerSlack is in nanoseconds; 0 is the default.
	TimerSlack uint64 `json:"timerSlack,omitempty"`
}
