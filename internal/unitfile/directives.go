package unitfile

import (
	"strings"
	"time"

	"legion.dev/legion/internal/service"
)

// Directive is one row of the table of what Legion knows of unit files.
type Directive struct {
	Section, Name string
	// Reason says why a known directive is not honoured yet; empty for one
	// that is.
	Reason string
	set    setter
}

// Honoured says whether the directive does what its manual says.
func (d *Directive) Honoured() bool { return d.set != nil }

// Directives is the table, in the order of the manual pages.
var Directives = build()

var byName = index()

func index() map[string]*Directive {
	m := make(map[string]*Directive, len(Directives))
	for i := range Directives {
		d := &Directives[i]
		m[d.Section+"."+d.Name] = d
	}
	return m
}

// Lookup finds a directive; nil is one that systemd does not know either.
func Lookup(section, name string) *Directive { return byName[section+"."+name] }

func build() []Directive {
	var out []Directive
	rows := func(section string, table []row) {
		for _, r := range table {
			for _, name := range strings.Fields(r.names) {
				out = append(out, Directive{Section: section, Name: name, Reason: r.reason, set: r.set})
			}
		}
	}
	rows("Unit", unitRows)
	rows("Unit", actionRows)
	rows("Unit", unitActionRows)
	rows("Service", serviceRows)
	rows("Service", actionRows)
	rows("Service", probeRows)
	rows("Service", execRows)
	rows("Service", sandboxRows)
	rows("Service", resourceRows)
	rows("Timer", timerRows)
	rows("Path", pathRows)
	rows("Socket", socketRows)
	rows("Install", installRows)
	return out
}

// row is one line of the table: names that share a setter, or a reason.
type row struct {
	names  string
	set    setter
	reason string
}

func dep(f func(*service.Dependencies) *[]string) setter { return units(f) }

var unitRows = []row{
	{names: "Description", set: text(func(c *compiler) *string { return &c.group.Description })},
	{names: "Documentation SourcePath", set: accept},
	// Legion has no shutdown or sysinit transaction that a unit could be left
	// out of: all of them stop at the end and none may start before the boot.
	{names: "DefaultDependencies CollectMode", set: accept},
	{names: "IgnoreOnIsolate", set: boolean(func(c *compiler) *bool { return &c.group.IgnoreOnIsolate })},
	{names: "AllowIsolate", set: boolean(func(c *compiler) *bool { return &c.group.AllowIsolate })},
	{names: "Requires", set: dep(func(d *service.Dependencies) *[]string { return &d.Requires })},
	{names: "Requisite", set: dep(func(d *service.Dependencies) *[]string { return &d.Requisite })},
	{names: "Wants", set: dep(func(d *service.Dependencies) *[]string { return &d.Wants })},
	{names: "BindsTo", set: dep(func(d *service.Dependencies) *[]string { return &d.BindsTo })},
	{names: "PartOf", set: dep(func(d *service.Dependencies) *[]string { return &d.PartOf })},
	{names: "Conflicts", set: dep(func(d *service.Dependencies) *[]string { return &d.Conflicts })},
	{names: "Before", set: dep(func(d *service.Dependencies) *[]string { return &d.Before })},
	{names: "After", set: dep(func(d *service.Dependencies) *[]string { return &d.After })},
	{names: "RefuseManualStart", set: boolean(func(c *compiler) *bool { return &c.group.RefuseManualStart })},
	{names: "RefuseManualStop", set: boolean(func(c *compiler) *bool { return &c.group.RefuseManualStop })},
	{names: "StartLimitIntervalSec StartLimitInterval", set: interval},
	{names: "StartLimitBurst", set: burst},
	{names: conditionNames, set: condition},
	{names: "ConditionVersion AssertVersion", reason: "it is about the version of systemd; the unit starts as if it held"},
	{names: "Upholds", set: dep(func(d *service.Dependencies) *[]string { return &d.Upholds })},
	{names: "OnFailure", set: dep(func(d *service.Dependencies) *[]string { return &d.OnFailure })},
	{names: "OnSuccess", set: dep(func(d *service.Dependencies) *[]string { return &d.OnSuccess })},
	{names: "PropagatesReloadTo PropagateReloadTo", set: dep(func(d *service.Dependencies) *[]string { return &d.PropagatesReloadTo })},
	{names: "ReloadPropagatedFrom PropagateReloadFrom", set: dep(func(d *service.Dependencies) *[]string { return &d.ReloadPropagatedFrom })},
	{names: "PropagatesStopTo", set: dep(func(d *service.Dependencies) *[]string { return &d.PropagatesStopTo })},
	{names: "StopPropagatedFrom", set: dep(func(d *service.Dependencies) *[]string { return &d.StopPropagatedFrom })},
	{names: "JoinsNamespaceOf", set: dep(func(d *service.Dependencies) *[]string { return &d.JoinsNamespaceOf })},
	{names: "StopWhenUnneeded", set: boolean(func(c *compiler) *bool { return &c.group.StopWhenUnneeded })},
	{names: "JobTimeoutSec", set: span(func(c *compiler) *time.Duration { return &c.group.JobTimeout })},
	{names: "JobRunningTimeoutSec", set: span(func(c *compiler) *time.Duration { return &c.group.JobRunningTimeout })},
	{names: "X-RestartOnDependency", set: not(func(c *compiler) *bool { return &c.group.NoRecover })},
	{names: "OnFailureJobMode", set: oneOf(func(c *compiler) *service.JobMode { return &c.group.OnFailureMode }, service.JobModes...)},
	{names: "OnSuccessJobMode", set: oneOf(func(c *compiler) *service.JobMode { return &c.group.OnSuccessMode }, service.JobModes...)},
	{names: "OnFailureIsolate", set: onFailureIsolate},
	{names: "RequiresMountsFor WantsMountsFor", reason: "mounts are the host's; none is waited for"},
	{names: "SurviveFinalKillSignal", reason: "the unit is stopped with all others"},
}

// conditionNames are the conditions that legiond tests.
var conditionNames = conditionsAndAsserts(`PathExists PathExistsGlob PathIsDirectory PathIsSymbolicLink
	PathIsReadWrite PathIsMountPoint PathIsSocket PathIsEncrypted DirectoryNotEmpty FileNotEmpty FileIsExecutable
	KernelCommandLine KernelVersion KernelModuleLoaded Architecture Virtualization Firmware Host Environment
	Credential Security Capability ACPower NeedsUpdate FirstBoot OSRelease Memory CPUs CPUFeature
	ControlGroupController MemoryPressure CPUPressure IOPressure User Group`)

// conditionsAndAsserts are the directives of conditions.
func conditionsAndAsserts(kinds string) string {
	var names []string
	for _, prefix := range []string{"Condition", "Assert"} {
		for kind := range strings.FieldsSeq(kinds) {
			names = append(names, prefix+kind)
		}
	}
	return strings.Join(names, " ")
}

var installRows = []row{
	{names: "WantedBy", set: installed(func(d *service.Dependencies) *[]string { return &d.WantedBy })},
	{names: "RequiredBy", set: installed(func(d *service.Dependencies) *[]string { return &d.RequiredBy })},
	{names: "Alias", set: installed(func(d *service.Dependencies) *[]string { return &d.Aliases })},
	// These speak to "systemctl enable", which makes links that Legion reads.
	{names: "Also DefaultInstance UpheldBy", set: accept},
}

func svc[T any](f func(*service.Service) *T) func(*compiler) *T {
	return func(c *compiler) *T { return f(&c.svc) }
}

func exe[T any](f func(*service.ExecContext) *T) func(*compiler) *T {
	return func(c *compiler) *T { return f(&c.svc.Exec) }
}

// also makes a setter note that its directive was given.
func also(set setter, note func(*compiler)) setter {
	return func(c *compiler, e Entry) error {
		err := set(c, e)
		if err == nil {
			note(c)
		}
		return err
	}
}

var (
	timeoutStart = also(span(svc(func(s *service.Service) *time.Duration { return &s.TimeoutStart })), func(c *compiler) { c.startSet = true })
	timeoutStop  = span(svc(func(s *service.Service) *time.Duration { return &s.TimeoutStop }))
	timeoutAbort = also(span(svc(func(s *service.Service) *time.Duration { return &s.TimeoutAbort })), func(c *compiler) { c.abortSet = true })
)

func timeoutBoth(c *compiler, e Entry) error {
	if err := timeoutStart(c, e); err != nil {
		return err
	}
	return timeoutStop(c, e)
}
