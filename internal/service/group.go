// Package service holds Legion's words: what a supervised process is, what is
// wanted of it and what is known of it. It imports nothing of Legion's and does
// nothing; every other package speaks in its types.
package service

import "time"

// Group is a set of services that live and die together: a unit is a group of
// one, a pod a group of its containers. It is desired state: whoever compiles
// it (from a unit file, an init.d script, a pod) is its only writer.
type Group struct {
	// Name is unique on a host: "cron.service", or "pod-<uid>" for a pod.
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Source      Source `json:"source"`
	// Services run in parallel once the group starts.
	Services []Service `json:"services,omitempty"`
	// Timer, Path and Socket, of which one at most is set, make the group one
	// that starts another; it then has no services, but for a socket with
	// commands: one, whose start is that it listens.
	Timer  *Timer  `json:"timer,omitempty"`
	Path   *Path   `json:"path,omitempty"`
	Socket *Socket `json:"socket,omitempty"`
	// Deps is what the group wants of other groups, by name.
	Deps Dependencies `json:"deps,omitzero"`
	// Boot: start the group when legiond starts, without being asked.
	Boot bool `json:"boot,omitempty"`
	// Grace, where positive, bounds the stop of the whole group in place of
	// each service's TimeoutStop (a pod's terminationGracePeriodSeconds).
	Grace time.Duration `json:"grace,omitempty"`
	// Resources, where not nil, bound what all services use together.
	Resources *Limits `json:"resources,omitempty"`
	// Warnings are what the compiler has to say: directives it knows but does
	// not honour yet, and those it does not know.
	Warnings []Warning `json:"warnings,omitempty"`
	// Annotations are opaque to the host and kept with the group. The agent
	// keeps the pod there, so that it survives the server's absence.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Conditions must all hold for a start; a false one skips it, and that is
	// no failure (systemd.unit(5), "Conditions and Asserts").
	Conditions []Condition `json:"conditions,omitempty"`
	// StartLimit bounds how often the group may start; zero Burst is no limit.
	StartLimit StartLimit `json:"startLimit,omitzero"`
	// RefuseManualStart and RefuseManualStop as in systemd.unit(5).
	RefuseManualStart bool `json:"refuseManualStart,omitempty"`
	RefuseManualStop  bool `json:"refuseManualStop,omitempty"`
	// StopWhenUnneeded stops the group once no active group wants it.
	StopWhenUnneeded bool `json:"stopWhenUnneeded,omitempty"`
	// NoRecover: where the group failed because one that it requires did, it
	// is not started again when that one is up (X-RestartOnDependency=no).
	NoRecover bool `json:"noRecover,omitempty"`
	// JobTimeout bounds a start, stop or reload of the group from its request,
	// JobRunningTimeout from when it is carried out; 0 is no limit.
	JobTimeout        time.Duration `json:"jobTimeout,omitempty"`
	JobRunningTimeout time.Duration `json:"jobRunningTimeout,omitempty"`
	// Actions are what the group brings about for legiond and the machine.
	Actions Actions `json:"actions,omitzero"`
	// OnFailureMode and OnSuccessMode are how the groups of OnFailure and
	// OnSuccess are asked for.
	OnFailureMode JobMode `json:"onFailureMode,omitempty"`
	OnSuccessMode JobMode `json:"onSuccessMode,omitempty"`
	// AllowIsolate: it may be started with the mode isolate; IgnoreOnIsolate: it
	// goes on when another one is.
	AllowIsolate    bool `json:"allowIsolate,omitempty"`
	IgnoreOnIsolate bool `json:"ignoreOnIsolate,omitempty"`
}

// SourceKind says what a group was compiled from.
type SourceKind string

// The kinds of source.
const (
	FromUnit   SourceKind = "unit"
	FromInitd  SourceKind = "initd"
	FromPod    SourceKind = "pod"
	FromTarget SourceKind = "target"
)

// Source tells where a group came from.
type Source struct {
	Kind SourceKind `json:"kind"`
	// Files are the fragment and its drop-ins, in the order they were read.
	Files []string `json:"files,omitempty"`
}

// Warning is one remark of a compiler, at a place a person can open.
type Warning struct {
	File string `json:"file,omitempty"`
	// Line counts from 1; 0 is the whole file.
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
}

// Dependencies are edges to other groups, as in systemd.unit(5).
type Dependencies struct {
	Requires  []string `json:"requires,omitempty"`
	Requisite []string `json:"requisite,omitempty"`
	Wants     []string `json:"wants,omitempty"`
	BindsTo   []string `json:"bindsTo,omitempty"`
	PartOf    []string `json:"partOf,omitempty"`
	Conflicts []string `json:"conflicts,omitempty"`
	Before    []string `json:"before,omitempty"`
	After     []string `json:"after,omitempty"`
	// Upholds starts these again whenever they are down while the group is up.
	Upholds []string `json:"upholds,omitempty"`
	// OnFailure and OnSuccess are started when the group has failed, or has
	// ended well.
	OnFailure []string `json:"onFailure,omitempty"`
	OnSuccess []string `json:"onSuccess,omitempty"`
	// A reload or a stop of this group is one of those, too; and the inverse.
	PropagatesReloadTo   []string `json:"propagatesReloadTo,omitempty"`
	ReloadPropagatedFrom []string `json:"reloadPropagatedFrom,omitempty"`
	PropagatesStopTo     []string `json:"propagatesStopTo,omitempty"`
	StopPropagatedFrom   []string `json:"stopPropagatedFrom,omitempty"`
	// JoinsNamespaceOf are units whose private /tmp, network and IPC namespace
	// the group's service shares, and the other way round.
	JoinsNamespaceOf []string `json:"joinsNamespaceOf,omitempty"`
	// WantedBy, RequiredBy and Aliases come from [Install].
	WantedBy   []string `json:"wantedBy,omitempty"`
	RequiredBy []string `json:"requiredBy,omitempty"`
	Aliases    []string `json:"aliases,omitempty"`
}

// StartLimit is StartLimitIntervalSec= and StartLimitBurst=.
type StartLimit struct {
	Interval time.Duration `json:"interval,omitempty"`
	Burst    int           `json:"burst,omitempty"`
}

// Condition is one Condition…= or Assert…= line.
type Condition struct {
	// Kind is the directive without its prefix: "PathExists".
	Kind   string `json:"kind"`
	Value  string `json:"value"`
	Negate bool   `json:"negate,omitempty"`
	// Trigger: one of the lines marked with | must hold (systemd.unit(5)).
	Trigger bool `json:"trigger,omitempty"`
	// Assert: a false condition is a failure, not a skip.
	Assert bool `json:"assert,omitempty"`
}

// Type is Type= of systemd.service(5): when a start counts as done.
type Type string

// The service types that Legion runs.
const (
	Simple  Type = "simple"
	Exec    Type = "exec"
	Forking Type = "forking"
	Oneshot Type = "oneshot"
	Notify  Type = "notify"
	// NotifyReload is notify, with reload by signal and RELOADING=1.
	NotifyReload Type = "notify-reload"
	// DBus is up once it owns BusName.
	DBus Type = "dbus"
	Idle Type = "idle"
)

// Service is one supervised process and its helper commands.
type Service struct {
	// Name is unique in the group: the unit's name, or the container's.
	Name string `json:"name"`
	Type Type   `json:"type"`
	// Stage, where services of the group differ in it, is their order: those
	// of a stage start once those of the stage before have (a oneshot: once it
	// has ended well), and stop before them. When the last stage has come to
	// its end by itself, the others are stopped.
	Stage int `json:"stage,omitempty"`
	// Ephemeral: it may be added to a group that runs, is started then, and
	// never again. It is no part of what is started with the group or of
	// whether the group is up; it is stopped with it.
	Ephemeral bool `json:"ephemeral,omitempty"`

	StartPre  []Command `json:"startPre,omitempty"`
	Start     []Command `json:"start,omitempty"` // more than one only for Oneshot
	StartPost []Command `json:"startPost,omitempty"`
	Reload    []Command `json:"reload,omitempty"`
	Stop      []Command `json:"stop,omitempty"`
	StopPost  []Command `json:"stopPost,omitempty"`
	// StopAlive: the Stop commands are only for a main process that lives, as
	// a container's preStop is; a unit's run after its end, too.
	StopAlive bool `json:"stopAlive,omitempty"`

	Exec ExecContext `json:"exec,omitzero"`
	// Resources, where not nil, bound what the service may use.
	Resources *Limits `json:"resources,omitempty"`
	// Fixed is what a run of the service cannot be given anew: where it is
	// another one than at the run's start, the service is restarted.
	Fixed string `json:"fixed,omitempty"`

	Restart Restart `json:"restart,omitzero"`
	Kill    Kill    `json:"kill,omitzero"`

	// TimeoutStart, TimeoutStop and TimeoutAbort; 0 is no limit.
	TimeoutStart time.Duration `json:"timeoutStart,omitempty"`
	TimeoutStop  time.Duration `json:"timeoutStop,omitempty"`
	TimeoutAbort time.Duration `json:"timeoutAbort,omitempty"`
	// RuntimeMax ends a run that lasts longer; 0 is no limit.
	RuntimeMax time.Duration `json:"runtimeMax,omitempty"`
	// Watchdog is the longest silence between WATCHDOG=1; 0 is off.
	Watchdog time.Duration `json:"watchdog,omitempty"`

	// Sockets are socket units, beside those that start the service, whose
	// descriptors it gets.
	Sockets []string `json:"sockets,omitempty"`
	// NonBlocking sets O_NONBLOCK on the descriptors that are passed.
	NonBlocking bool `json:"nonBlocking,omitempty"`

	// BusName is what a Type=dbus service owns on the system bus.
	BusName string `json:"busName,omitempty"`

	PIDFile         string       `json:"pidFile,omitempty"`
	GuessMainPID    bool         `json:"guessMainPID,omitempty"`
	RemainAfterExit bool         `json:"remainAfterExit,omitempty"`
	NotifyAccess    NotifyAccess `json:"notifyAccess,omitempty"`

	// FDStoreMax is how many file descriptors the service may leave with the
	// service manager (FDSTORE=1 of sd_notify(3)); FDStorePreserve keeps them
	// also when it stops: "yes", "no" or "restart" (empty is "restart").
	FDStoreMax      int    `json:"fdStoreMax,omitempty"`
	FDStorePreserve string `json:"fdStorePreserve,omitempty"`

	// SuccessStatus are exit statuses, beside 0 and the four signals of
	// systemd.service(5), that count as a clean end.
	SuccessStatus ExitSet `json:"successStatus,omitzero"`

	// TerminationMessage, where not nil, is where the main process may say why
	// it ends.
	TerminationMessage *TerminationMessage `json:"terminationMessage,omitempty"`

	Readiness *Probe `json:"readiness,omitempty"`
	Liveness  *Probe `json:"liveness,omitempty"`
	Startup   *Probe `json:"startup,omitempty"`
}

// TerminationMessage is a container's terminationMessagePath and -Policy.
type TerminationMessage struct {
	// Path is a file of the host, empty for none. It is emptied before each
	// start, and what it holds after the end, up to 4096 bytes, is Exit.Message.
	Path string `json:"path,omitempty"`
	// Log takes the end of the log where the run failed and the file is empty.
	Log bool `json:"log,omitempty"`
}

// Command is one line of Exec…=, already split into words; specifiers are
// expanded, environment variables are not.
type Command struct {
	// Path is the executable: absolute, or a bare name to look up in PATH.
	Path string `json:"path"`
	// Argv has argv[0] in front.
	Argv []string `json:"argv"`
	// HTTP, where not nil, is a request that is made in place of a process, as
	// a container's hook may be; Path names it in messages.
	HTTP *HTTPProbe `json:"http,omitempty"`
	// Listen, in place of a process: the sockets of the group are opened.
	Listen bool `json:"listen,omitempty"`
	// Adopt, in place of a start: a process that runs already.
	Adopt *Adopted `json:"adopt,omitempty"`
	// IgnoreFailure is the prefix "-".
	IgnoreFailure bool `json:"ignoreFailure,omitempty"`
	// NoExpand is the prefix ":": no environment variable substitution.
	NoExpand bool `json:"noExpand,omitempty"`
	// FullPrivileges is the prefix "+": User= and the sandbox do not apply.
	FullPrivileges bool `json:"fullPrivileges,omitempty"`
	// KeepUser is the prefix "!": only User=, Group= and SupplementaryGroups=
	// do not apply.
	KeepUser bool `json:"keepUser,omitempty"`
	// Condition is for commands of StartPre: an exit status from 1 to 254 skips
	// the start (ExecCondition=).
	Condition bool `json:"condition,omitempty"`
}

// Adopted is a process that others have started; StartTicks tells it from a later
// one of that number (proc_pid_stat(5), starttime).
type Adopted struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"startTicks"`
}

// ExecContext is what surrounds a process: as whom, where, with what.
// See systemd.exec(5).
type ExecContext struct {
	User                string   `json:"user,omitempty"`
	Group               string   `json:"group,omitempty"`
	SupplementaryGroups []string `json:"supplementaryGroups,omitempty"`

	WorkingDirectory string `json:"workingDirectory,omitempty"` // "~" is the user's home
	// WorkingDirectoryOptional is the prefix "-" of WorkingDirectory=.
	WorkingDirectoryOptional bool   `json:"workingDirectoryOptional,omitempty"`
	RootDirectory            string `json:"rootDirectory,omitempty"`
	NetworkNamespacePath     string `json:"networkNamespacePath,omitempty"`

	// Environment is "NAME=value", later ones win.
	Environment      []string          `json:"environment,omitempty"`
	EnvironmentFiles []EnvironmentFile `json:"environmentFiles,omitempty"`
	PassEnvironment  []string          `json:"passEnvironment,omitempty"`
	// FileVariables are read from files whenever the main process is started,
	// and hold for all that runs of the service until it is started again.
	FileVariables    []FileVariable `json:"fileVariables,omitempty"`
	UnsetEnvironment []string       `json:"unsetEnvironment,omitempty"`
	// CleanEnvironment: start from nothing instead of systemd's defaults
	// (PATH, LANG, USER, HOME, INVOCATION_ID …); containers use it.
	CleanEnvironment bool `json:"cleanEnvironment,omitempty"`

	UMask *uint32 `json:"umask,omitempty"` // nil is 0022
	// Rlimits by systemd's name without "Limit": "NOFILE".
	Rlimits        map[string]Rlimit `json:"rlimits,omitempty"`
	Nice           *int              `json:"nice,omitempty"`
	OOMScoreAdjust *int              `json:"oomScoreAdjust,omitempty"`

	Runtime       []Directory `json:"runtimeDirectory,omitempty"`
	State         []Directory `json:"stateDirectory,omitempty"`
	Cache         []Directory `json:"cacheDirectory,omitempty"`
	Logs          []Directory `json:"logsDirectory,omitempty"`
	Configuration []Directory `json:"configurationDirectory,omitempty"`
	// RuntimePreserve is RuntimeDirectoryPreserve=: "no", "yes", "restart".
	RuntimePreserve string `json:"runtimePreserve,omitempty"`

	// SearchPath are absolute directories, in place of PATH's, where bare names
	// of executables are looked up (ExecSearchPath=).
	SearchPath []string `json:"searchPath,omitempty"`

	// StandardInput, StandardOutput and StandardError as systemd names them
	// ("null", "journal", "inherit", "file:/path", "append:/path" …). Empty
	// is "null" for input and "journal" for output: Legion's own log.
	StandardInput  string `json:"standardInput,omitempty"`
	StandardOutput string `json:"standardOutput,omitempty"`
	StandardError  string `json:"standardError,omitempty"`
	// InputData is what commands read where StandardInput is "data".
	InputData []byte `json:"inputData,omitempty"`
	// Console, where not nil, is in place of StandardInput; a terminal is in
	// place of all three.
	Console *Console `json:"console,omitempty"`

	NoNewPrivileges bool `json:"noNewPrivileges,omitempty"`
	// Capabilities: nil keeps what the service manager has.
	CapabilityBoundingSet *[]string `json:"capabilityBoundingSet,omitempty"`
	AmbientCapabilities   []string  `json:"ambientCapabilities,omitempty"`

	// DynamicUser: User, or one named after the group, need not exist; its
	// number is the service's alone.
	DynamicUser bool `json:"dynamicUser,omitempty"`
	// Credentials are handed over as files in CREDENTIALS_DIRECTORY.
	Credentials []Credential `json:"credentials,omitempty"`
	// Sandbox and Scheduling: nil is nothing of it.
	Sandbox    *Sandbox    `json:"sandbox,omitempty"`
	Scheduling *Scheduling `json:"scheduling,omitempty"`

	IgnoreSIGPIPE *bool `json:"ignoreSIGPIPE,omitempty"` // nil is yes
	// Mounts are seen by the service's processes alone: they have a mount
	// namespace of their own, which goes with the last of them.
	Mounts []Mount `json:"mounts,omitempty"`
	// ReadOnlyRoot makes everything read-only but Mounts, /proc and /dev.
	ReadOnlyRoot bool `json:"readOnlyRoot,omitempty"`
	// Container, where not nil, is what the main process runs in.
	Container *Container `json:"container,omitempty"`
	// Delegate leaves the cgroup below the service's own to the service.
	Delegate bool `json:"delegate,omitempty"`
}

// Credential is one LoadCredential= or SetCredential= line.
type Credential struct {
	Name string `json:"name"`
	// Source is an absolute path, or a name in the credential stores; empty
	// is Data.
	Source string `json:"source,omitempty"`
	Data   []byte `json:"data,omitempty"`
}

// EnvironmentFile is one EnvironmentFile= line.
type EnvironmentFile struct {
	Path     string `json:"path"`
	Optional bool   `json:"optional,omitempty"` // the prefix "-"
}

// Mount shows a file or directory of the host at another place.
type Mount struct {
	// Source and Target are absolute; SubPath is below Source and cannot lead
	// out of it.
	Source  string `json:"source"`
	SubPath string `json:"subPath,omitempty"`
	Target  string `json:"target"`
	// ReadOnly is of this mount; with Recursive also of those below it.
	ReadOnly  bool `json:"readOnly,omitempty"`
	Recursive bool `json:"recursive,omitempty"`
	// Propagation is "private" (also if empty), "slave" (later mounts of the
	// host are seen) or "shared" (and the host sees those of the service).
	Propagation string `json:"propagation,omitempty"`
	// Is says what Source must be, in the words of a hostPath's type:
	// "Directory", "DirectoryOrCreate" and so on; empty is anything, and
	// "OrCreate" a directory where there is nothing.
	Is string `json:"is,omitempty"`
	// Mode and Group are those of a directory that is made; 0 is 0755.
	Mode  uint32  `json:"mode,omitempty"`
	Group *uint32 `json:"group,omitempty"`
	// Tmpfs keeps Source in memory for as long as the group runs, for all its
	// services; Size bounds it, in bytes, 0 by half of the memory.
	Tmpfs bool  `json:"tmpfs,omitempty"`
	Size  int64 `json:"size,omitempty"`
	// Image, where set, is what Source shows for as long as the group runs:
	// read-only, and nothing of it can be executed.
	Image *ImageFiles `json:"image,omitempty"`
}

// ImageFiles are the files of an image.
type ImageFiles struct {
	// ID is the digest of the image's configuration.
	ID string `json:"id"`
	// Layers are directories, lowest first.
	Layers []string `json:"layers"`
}

// Rlimit is a resource limit in setrlimit(2)'s unit of that resource; all ones
// is infinity.
type Rlimit struct {
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Directory is one entry of RuntimeDirectory= and its like, relative to the
// base directory of its kind.
type Directory struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode,omitempty"` // 0 is 0755
	// Links are further names, also relative (systemd's "dir:link").
	Links []string `json:"links,omitempty"`
}

// RestartMode is Restart= of systemd.service(5).
type RestartMode string

// The restart modes.
const (
	RestartNo         RestartMode = "no"
	RestartOnSuccess  RestartMode = "on-success"
	RestartOnFailure  RestartMode = "on-failure"
	RestartOnAbnormal RestartMode = "on-abnormal"
	RestartOnAbort    RestartMode = "on-abort"
	RestartOnWatchdog RestartMode = "on-watchdog"
	RestartAlways     RestartMode = "always"
)

// RestartWay is RestartMode= of systemd.service(5): whether others see a service
// that restarts by itself go down in between.
type RestartWay string

// The ways; empty is direct.
const (
	RestartNormal RestartWay = "normal"
	RestartDirect RestartWay = "direct"
	// RestartDebug is normal, and the restarted service has DEBUG_INVOCATION=1.
	RestartDebug RestartWay = "debug"
)

// Restart says whether and when a service that ended runs again.
type Restart struct {
	Mode RestartMode `json:"mode,omitempty"` // empty is "no"
	Way  RestartWay  `json:"way,omitempty"`
	// Delay before the first restart (RestartSec=); 0 is at once.
	Delay time.Duration `json:"delay,omitempty"`
	// Steps and MaxDelay: the delay grows in so many steps to MaxDelay
	// (RestartSteps=, RestartMaxDelaySec=); 0 steps keeps Delay.
	Steps    int           `json:"steps,omitempty"`
	MaxDelay time.Duration `json:"maxDelay,omitempty"`
	// Backoff, where set, takes the place of Delay and Steps: the first
	// restart at once, then Initial, doubling up to Max, forgotten after a run
	// of ResetAfter. It is the kubelet's rule for containers.
	Backoff *Backoff `json:"backoff,omitempty"`
	// Prevent and Force are RestartPreventExitStatus= and
	// RestartForceExitStatus=.
	Prevent ExitSet `json:"prevent,omitzero"`
	Force   ExitSet `json:"force,omitzero"`
	// All are ends after which, once the delay is over, all services of the
	// group are ended and start again, by their stages.
	All ExitSet `json:"all,omitzero"`
}

// Backoff is an exponential delay between restarts.
type Backoff struct {
	Initial    time.Duration `json:"initial"`
	Max        time.Duration `json:"max"`
	ResetAfter time.Duration `json:"resetAfter"`
}

// ExitSet is a set of exit codes and signals.
type ExitSet struct {
	Codes   []int `json:"codes,omitempty"`
	Signals []int `json:"signals,omitempty"`
}

// KillMode is KillMode= of systemd.kill(5).
type KillMode string

// The kill modes; empty is control-group.
const (
	KillControlGroup KillMode = "control-group"
	KillMixed        KillMode = "mixed"
	KillProcess      KillMode = "process"
	KillNone         KillMode = "none"
)

// Kill says how a service is made to stop. Signals are Linux numbers.
type Kill struct {
	Mode          KillMode `json:"mode,omitempty"`
	Signal        int      `json:"signal,omitempty"`        // 0 is SIGTERM
	RestartSignal int      `json:"restartSignal,omitempty"` // 0 is Signal
	ReloadSignal  int      `json:"reloadSignal,omitempty"`  // 0 is SIGHUP
	FinalSignal   int      `json:"finalSignal,omitempty"`   // 0 is SIGKILL
	WatchdogSig   int      `json:"watchdogSignal,omitempty"`
	SendSIGHUP    bool     `json:"sendSIGHUP,omitempty"`
	NoSIGKILL     bool     `json:"noSIGKILL,omitempty"` // SendSIGKILL=no
}

// NotifyAccess is NotifyAccess= of systemd.service(5): whose messages count.
type NotifyAccess string

// Whose sd_notify(3) messages count; empty is none.
const (
	NotifyNone NotifyAccess = "none"
	NotifyMain NotifyAccess = "main"
	NotifyExec NotifyAccess = "exec"
	NotifyAll  NotifyAccess = "all"
)

// Probe asks a running service how it is. Exactly one of HTTP, TCP, GRPC, Exec
// and Log is set. The meaning of the numbers is Kubernetes' (core/v1 Probe).
type Probe struct {
	HTTP *HTTPProbe `json:"http,omitempty"`
	TCP  *TCPProbe  `json:"tcp,omitempty"`
	GRPC *GRPCProbe `json:"grpc,omitempty"`
	Exec *Command   `json:"exec,omitempty"`
	// Log is a regular expression; it succeeds once a line that the run has
	// written matches.
	Log string `json:"log,omitempty"`

	InitialDelay     time.Duration `json:"initialDelay,omitempty"`
	Period           time.Duration `json:"period,omitempty"`  // 0 is 10 s
	Timeout          time.Duration `json:"timeout,omitempty"` // 0 is 1 s
	SuccessThreshold int           `json:"successThreshold,omitempty"`
	FailureThreshold int           `json:"failureThreshold,omitempty"` // 0 is 3
	// Grace, where not 0, bounds the stop that failures bring about, in place
	// of the group's.
	Grace time.Duration `json:"grace,omitempty"`
}

// HTTPProbe succeeds on a status from 200 to 399.
type HTTPProbe struct {
	Scheme  string      `json:"scheme,omitempty"` // "http" (default), "https" (not verified)
	Host    string      `json:"host,omitempty"`   // empty is 127.0.0.1
	Port    int         `json:"port"`
	Path    string      `json:"path,omitempty"`
	Headers [][2]string `json:"headers,omitempty"`
	// AnyStatus: an answer is enough, whatever it is.
	AnyStatus bool `json:"anyStatus,omitempty"`
}

// GRPCProbe succeeds when the health service of gRPC (grpc.health.v1) says that
// Service, empty for the server as a whole, is serving.
type GRPCProbe struct {
	Host    string `json:"host,omitempty"`
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}

// TCPProbe succeeds when a connection opens.
type TCPProbe struct {
	Host string `json:"host,omitempty"`
	Port int    `json:"port"`
}
