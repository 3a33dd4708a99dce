package unitfile

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/service"
)

// compiler carries one compilation.
type compiler struct {
	name     string
	fragment string
	opts     Options
	group    *service.Group
	svc      service.Service

	// readiness and liveness hold the times of the probes.
	readiness, liveness service.Probe
	abortSet            bool
	startSet            bool
	notifySet           bool
	// startOnly is PermissionsStartOnly=.
	startOnly bool
	modes     map[string]uint32
	reported  map[string]bool
}

// Compile makes the group of a unit from its fragment and its drop-ins, in the
// order in which they apply. The name is the unit's own: for an instance of a
// template it is the instance's.
//
// What is known but not honoured, what is unknown and what has a wrong value is
// in the group's warnings. The error is an *Error: the unit cannot be loaded.
func Compile(name string, fragment *File, dropins []*File, opts Options) (service.Group, error) {
	_, _, suffix, kind := ParseName(name)
	if kind&(Plain|Instance) == 0 {
		return service.Group{}, &Error{fragment.Path, 0, fmt.Sprintf("%q is not the name of a unit", name)}
	}
	if sections[suffix] == nil {
		return service.Group{}, &Error{fragment.Path, 0, fmt.Sprintf("units of type %q are not supported yet", suffix[1:])}
	}
	c := newCompiler(name, fragment.Path, opts.WithDefaults())
	switch suffix {
	case ".timer":
		c.group.Timer = &service.Timer{}
	case ".path":
		c.group.Path = &service.Path{}
	case ".socket":
		c.group.Socket = &service.Socket{}
	}
	for _, f := range append([]*File{fragment}, dropins...) {
		c.group.Source.Files = append(c.group.Source.Files, f.Path)
		c.group.Warnings = append(c.group.Warnings, f.Warnings...)
		for _, e := range f.Entries {
			if err := c.entry(e, suffix); err != nil {
				return service.Group{}, &Error{e.File, e.Line, err.Error()}
			}
		}
	}
	if g := c.group; g.OnFailureMode == service.JobIsolate && len(g.Deps.OnFailure) > 1 || g.OnSuccessMode == service.JobIsolate && len(g.Deps.OnSuccess) > 1 {
		return service.Group{}, &Error{fragment.Path, 0, "only one unit can be isolated: OnFailure= or OnSuccess= names several"}
	}
	if suffix == ".target" {
		c.group.Source.Kind = service.FromTarget
		return *c.group, nil
	}
	finish := c.finish
	if suffix != ".service" {
		finish = func() error { return c.finishTrigger(suffix) }
	}
	if err := finish(); err != nil {
		return service.Group{}, &Error{fragment.Path, 0, err.Error()}
	}
	if suffix == ".service" {
		c.group.Services = []service.Service{c.svc}
	}
	return *c.group, nil
}

// newCompiler sets systemd's defaults.
func newCompiler(name, fragment string, opts Options) *compiler {
	c := &compiler{
		name: name, fragment: fragment, opts: opts,
		group: &service.Group{
			Name:       name,
			Source:     service.Source{Kind: service.FromUnit},
			StartLimit: service.StartLimit{Interval: 10 * time.Second, Burst: 5},
		},
		svc: service.Service{
			Name:         name,
			GuessMainPID: true,
			TimeoutStart: 90 * time.Second,
			TimeoutStop:  90 * time.Second,
			Restart:      service.Restart{Mode: service.RestartNo, Delay: 100 * time.Millisecond},
		},
		modes:    map[string]uint32{},
		reported: map[string]bool{},
	}
	return c
}

// directories is what a directive sets.
func (c *compiler) directories(directive string) *[]service.Directory {
	x := &c.svc.Exec
	switch directive {
	case "RuntimeDirectory":
		return &x.Runtime
	case "StateDirectory":
		return &x.State
	case "CacheDirectory":
		return &x.Cache
	case "LogsDirectory":
		return &x.Logs
	default:
		return &x.Configuration
	}
}

func (c *compiler) warn(e Entry, format string, args ...any) {
	c.group.Warnings = append(c.group.Warnings, service.Warning{
		File: e.File, Line: e.Line, Text: e.Key + "= " + fmt.Sprintf(format, args...),
	})
}

// sections are those of each type of unit.
var sections = map[string][]string{
	".service": {"Unit", "Install", "Service"},
	".target":  {"Unit", "Install"},
	".timer":   {"Unit", "Install", "Timer"},
	".path":    {"Unit", "Install", "Path"},
	".socket":  {"Unit", "Install", "Socket"},
}

// entry carries out one assignment. The error is fatal for the unit.
func (c *compiler) entry(e Entry, suffix string) error {
	switch {
	case !slices.Contains(sections[suffix], e.Section):
		if key := "[" + e.Section + "]"; !c.reported[e.File+key] {
			c.reported[e.File+key] = true
			c.group.Warnings = append(c.group.Warnings, service.Warning{
				File: e.File, Line: e.Line, Text: "unknown section " + key + "; ignored",
			})
		}
		return nil
	case strings.HasPrefix(e.Key, "X-") && Lookup(e.Section, e.Key) == nil:
		return nil
	}
	d := Lookup(e.Section, e.Key)
	switch {
	case d == nil:
		c.warn(e, "is unknown in section [%s]; ignored", e.Section)
	case d.set == nil:
		if !c.reported[d.Name] {
			c.reported[d.Name] = true
			c.warn(e, "is not honoured yet: %s", d.Reason)
		}
	default:
		err := d.set(c, e)
		if fatal, ok := err.(fatalError); ok {
			return fatal.error
		}
		if err != nil {
			c.warn(e, "ignored: %v", err)
		}
	}
	return nil
}

// fatalError is a wrong value without which the unit must not run.
type fatalError struct{ error }

func (c *compiler) expand(s string) (string, error) {
	return c.opts.Expand(c.name, c.fragment, s)
}

// words splits a value and expands its specifiers.
func (c *compiler) words(value string) ([]string, error) {
	list, err := Split(value)
	if err != nil {
		return nil, err
	}
	for i, w := range list {
		if list[i], err = c.expand(w); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// finish applies the rules that look at more than one directive; see
// systemd.service(5).
func (c *compiler) finish() error {
	s := &c.svc
	c.finishType()
	c.finishProbes()
	c.finishPermissions()
	oneshot := s.Type == service.Oneshot
	switch {
	case s.Type == service.DBus && s.BusName == "":
		return errors.New("a service with Type=dbus needs BusName=")
	case len(s.Start) == 0 && len(s.Stop) == 0:
		return fmt.Errorf("neither ExecStart= nor ExecStop= is set: there is nothing to run")
	case len(s.Start) == 0 && !oneshot:
		return fmt.Errorf("ExecStart= is not set, which only Type=oneshot allows")
	case len(s.Start) == 0 && !s.RemainAfterExit:
		return fmt.Errorf("ExecStart= is not set, which needs RemainAfterExit=yes")
	case len(s.Start) > 1 && !oneshot:
		return fmt.Errorf("more than one ExecStart=, which only Type=oneshot allows")
	case oneshot && (s.Restart.Mode == service.RestartAlways || s.Restart.Mode == service.RestartOnSuccess):
		return fmt.Errorf("with Type=oneshot, Restart=%s would run the commands without end; use no or on-failure", s.Restart.Mode)
	}
	if oneshot && !c.startSet {
		s.TimeoutStart = 0
	}
	if !c.abortSet {
		s.TimeoutAbort = s.TimeoutStop
	}
	if !c.notifySet && (s.Type == service.Notify || s.Type == service.NotifyReload || s.Watchdog > 0) {
		s.NotifyAccess = service.NotifyMain
	}
	if (s.Restart.Steps > 0) != (s.Restart.MaxDelay > 0) {
		c.whole("RestartSteps= and RestartMaxDelaySec= work only together; ignored")
		s.Restart.Steps, s.Restart.MaxDelay = 0, 0
	}
	if s.Restart.MaxDelay > 0 && s.Restart.MaxDelay < s.Restart.Delay {
		c.whole("RestartMaxDelaySec= is shorter than RestartSec=; ignored")
		s.Restart.Steps, s.Restart.MaxDelay = 0, 0
	}
	if s.Exec.StandardInput == "" && len(s.Exec.InputData) > 0 {
		s.Exec.StandardInput = "data"
	}
	if s.Exec.DynamicUser {
		dynamicUser(&s.Exec)
	}
	if x := s.Exec.Sandbox; x != nil && reflect.DeepEqual(*x, service.Sandbox{}) {
		s.Exec.Sandbox = nil
	}
	for directive, mode := range c.modes {
		list := *c.directories(directive)
		for i := range list {
			list[i].Mode = mode
		}
	}
	return nil
}

func (c *compiler) whole(text string) {
	c.group.Warnings = append(c.group.Warnings, service.Warning{File: c.fragment, Text: text})
}

// finishType chooses the type that is not set.
// finishPermissions lets all commands but ExecStart= run with all privileges
// where PermissionsStartOnly= says so, as if each had the prefix "+".
func (c *compiler) finishPermissions() {
	if !c.startOnly {
		return
	}
	for _, list := range [][]service.Command{c.svc.StartPre, c.svc.StartPost, c.svc.Reload, c.svc.Stop, c.svc.StopPost} {
		for i := range list {
			list[i].FullPrivileges = true
		}
	}
}

func (c *compiler) finishType() {
	s := &c.svc
	switch {
	case s.Type != "":
	case s.BusName != "":
		s.Type = service.DBus
	case len(s.Start) == 0:
		s.Type = service.Oneshot
	default:
		s.Type = service.Simple
	}
	if s.Type == service.DBus {
		c.group.Deps.Wants = append(c.group.Deps.Wants, busSocket)
		c.group.Deps.After = append(c.group.Deps.After, busSocket)
	}
}

// busSocket is the unit whose socket is the system bus. systemd requires it of
// every Type=dbus service; here a bus may also come from outside, in a
// container.
const busSocket = "dbus.socket"
