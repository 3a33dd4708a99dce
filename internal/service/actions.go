package service

// Action is what legiond does to itself, or to the machine whose process 1 it
// is (systemd.unit(5), FailureAction=); empty is none.
type Action string

// The actions.
const (
	NoAction          Action = "none"
	ExitAction        Action = "exit"
	ExitForce         Action = "exit-force"
	Reboot            Action = "reboot"
	RebootForce       Action = "reboot-force"
	RebootImmediate   Action = "reboot-immediate"
	PowerOff          Action = "poweroff"
	PowerOffForce     Action = "poweroff-force"
	PowerOffImmediate Action = "poweroff-immediate"
	Halt              Action = "halt"
	HaltForce         Action = "halt-force"
	HaltImmediate     Action = "halt-immediate"
)

// Actions are what a group brings about when it fails, ends well, is started too
// often, or has a job that takes too long.
type Actions struct {
	Failure    Action `json:"failure,omitempty"`
	Success    Action `json:"success,omitempty"`
	StartLimit Action `json:"startLimit,omitempty"`
	JobTimeout Action `json:"jobTimeout,omitempty"`
	// FailureStatus and SuccessStatus are what legiond exits with, 0 to 255;
	// nil is the exit status of the group's main process.
	FailureStatus *int `json:"failureStatus,omitempty"`
	SuccessStatus *int `json:"successStatus,omitempty"`
	// RebootArgument is given to reboot(2); JobTimeoutArgument is that of
	// JobTimeout.
	RebootArgument     string `json:"rebootArgument,omitempty"`
	JobTimeoutArgument string `json:"jobTimeoutArgument,omitempty"`
}

// JobMode is how a request goes together with the jobs that are there already
// (systemctl(1), --job-mode=); empty is replace.
type JobMode string

// The modes.
const (
	JobReplace             JobMode = "replace"
	JobFail                JobMode = "fail"
	JobReplaceIrreversibly JobMode = "replace-irreversibly"
	JobIsolate             JobMode = "isolate"
	JobFlush               JobMode = "flush"
	JobIgnoreDependencies  JobMode = "ignore-dependencies"
	JobIgnoreRequirements  JobMode = "ignore-requirements"
)

// JobModes are all of them.
var JobModes = []JobMode{
	JobReplace, JobFail, JobReplaceIrreversibly, JobIsolate, JobFlush, JobIgnoreDependencies, JobIgnoreRequirements,
}
