package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/procstat"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

// timerFlags are those of systemd-run that make a timer beside the service, or
// for a unit that is there.
type timerFlags struct {
	values     map[string]*[]string // by directive
	clock      bool
	properties []string
}

// timerDirectives are those that have a flag, and it.
var timerDirectives = []struct{ directive, flag string }{
	{"OnActiveSec", "on-active"},
	{"OnBootSec", "on-boot"},
	{"OnStartupSec", "on-startup"},
	{"OnUnitActiveSec", "on-unit-active"},
	{"OnUnitInactiveSec", "on-unit-inactive"},
	{"OnCalendar", "on-calendar"},
}

func (t *timerFlags) add(f *pflag.FlagSet) {
	t.values = map[string]*[]string{}
	for _, d := range timerDirectives {
		t.values[d.directive] = f.StringArray(d.flag, nil, d.directive+"= of a timer that starts the unit")
	}
	f.BoolVar(&t.clock, "on-clock-change", false, "a timer that starts the unit when the clock is set")
	f.StringArrayVar(&t.properties, "timer-property", nil, "a directive of the timer: NAME=VALUE")
}

func (t *timerFlags) set() bool {
	for _, v := range t.values {
		if len(*v) > 0 {
			return true
		}
	}
	return t.clock
}

// group is the timer for a unit.
func (t *timerFlags) group(unit string) (service.Group, error) {
	f := &unitfile.File{Path: "systemd-run"}
	set := func(section, key, value string) {
		f.Entries = append(f.Entries, unitfile.Entry{Section: section, Key: key, Value: value, File: f.Path})
	}
	set("Timer", "Unit", unit)
	set("Timer", "RemainAfterElapse", "no")
	for _, d := range timerDirectives {
		for _, v := range *t.values[d.directive] {
			set("Timer", d.directive, v)
		}
	}
	if t.clock {
		set("Timer", "OnClockChange", "yes")
	}
	for _, p := range t.properties {
		key, value, ok := strings.Cut(p, "=")
		if !ok || unitfile.Lookup("Timer", key) == nil {
			return service.Group{}, fmt.Errorf("unknown assignment: %s", p)
		}
		set("Timer", key, value)
	}
	name := strings.TrimSuffix(unit, unit[strings.LastIndexByte(unit, '.'):]) + ".timer"
	g, err := unitfile.Compile(name, f, nil, unitdir.ThisMachine())
	if err == nil && len(g.Warnings) > 0 {
		err = errors.New(g.Warnings[0].Text)
	}
	g.Source.Files = nil
	g.Annotations = map[string]string{transientKey: "always"}
	g.Boot = true // it begins as soon as it is there
	return g, err
}

// runTimer makes the timer, and the service that it starts unless that is there.
func (s *session) runTimer(ctx context.Context, r *runFlags, g *service.Group) error {
	unit := ""
	if g != nil {
		unit = g.Name
	} else {
		names, err := mangled([]string{r.unit})
		if err != nil {
			return err
		}
		unit = names[0]
	}
	timer, err := r.timer.group(unit)
	if err != nil {
		return &Exit{exitFailure, fmt.Errorf("systemd-run: %w", err)}
	}
	c := s.client()
	defer c.Close()
	for _, name := range []string{timer.Name, unit} {
		if old, err := c.Group(ctx, name); err == nil && (g != nil || name != unit) {
			return &Exit{exitFailure, fmt.Errorf("Failed to start transient timer unit: Unit %s was already loaded (%s)", name, old.ActiveState)} //lint:ignore ST1005 systemd-run's words
		}
	}
	if g != nil {
		if _, err := c.Put(ctx, *g); err != nil {
			return explained(err)
		}
	}
	if _, err := c.Put(ctx, timer); err != nil {
		return explained(err)
	}
	if !r.quiet {
		fmt.Fprintf(s.Err, "Running timer as unit: %s\n", timer.Name)
		if g != nil {
			fmt.Fprintf(s.Err, "Will run service as unit: %s\n", unit)
		}
	}
	return nil
}

// runScope has legiond take this process in, and makes it the command.
func (s *session) runScope(ctx context.Context, r *runFlags, g service.Group) error {
	st, err := procstat.Read(os.Getpid())
	if err != nil {
		return &Exit{exitFailure, err}
	}
	g.Name = strings.TrimSuffix(g.Name, ".service") + ".scope"
	x := &g.Services[0]
	command := x.Start[0]
	env, nice := x.Exec.Environment, x.Exec.Nice
	x.Name, x.Type, x.Exec = g.Name, service.Simple, service.ExecContext{}
	x.Start[0].Adopt = &service.Adopted{PID: os.Getpid(), StartTicks: uint64(st.Number(procstat.StartTime))}
	g.Annotations = map[string]string{transientKey: "always"}
	quiet := *r
	quiet.quiet, quiet.noBlock = true, false
	if err := s.transient(ctx, &quiet, g); err != nil {
		return err
	}
	if !r.quiet {
		fmt.Fprintf(s.Err, "Running scope as unit: %s\n", g.Name)
	}
	if r.dir != "" {
		if err := os.Chdir(r.dir); err != nil {
			return &Exit{exitFailure, err}
		}
	}
	runtime.LockOSThread() // what is executed goes on as this thread
	if nice != nil {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, *nice); err != nil {
			return &Exit{exitFailure, fmt.Errorf("cannot set the nice level %d: %w", *nice, err)}
		}
	}
	all := os.Environ()
	for _, e := range env {
		all = unitfile.SetEnvironment(all, e)
	}
	err = unix.Exec(command.Path, command.Argv, all)
	return &Exit{exitFailure, fmt.Errorf("cannot execute %s: %w", command.Path, err)}
}
