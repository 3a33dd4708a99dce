package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// The numbers of waitid(2) for how a process ended.
const (
	cldExited = 1
	cldKilled = 2
	cldDumped = 3
)

// serviceProperties are those that only a service has.
func serviceProperties(g *hostapi.Group) []property {
	if len(g.Spec.Services) == 0 {
		return nil
	}
	svc := g.Spec.Services[0]
	var st service.Status
	if len(g.Status.Services) > 0 {
		st = g.Status.Services[0]
	}
	result := string(st.Result)
	if result == "" {
		result = string(service.Success)
	}
	kind := string(svc.Type)
	restart := string(svc.Restart.Mode)
	if restart == "" {
		restart = "no"
	}
	out := []property{
		{"Type", kind},
		{"Restart", restart},
		{"PIDFile", svc.PIDFile},
		{"NotifyAccess", orNone(string(svc.NotifyAccess))},
		{"RestartUSec", usec(svc.Restart.Delay)},
		{"TimeoutStartUSec", usec(svc.TimeoutStart)},
		{"TimeoutStopUSec", usec(svc.TimeoutStop)},
		{"TimeoutAbortUSec", usec(svc.TimeoutAbort)},
		{"RuntimeMaxUSec", usec(svc.RuntimeMax)},
		{"RemainAfterExit", yesNo(svc.RemainAfterExit)},
		{"GuessMainPID", yesNo(svc.GuessMainPID)},
		{"Result", result},
		{"NRestarts", strconv.Itoa(st.Restarts)},
		{"StatusText", st.Text},
		{"ControlPID", strconv.Itoa(st.ControlPID)},
	}
	out = append(out, mainProperties(st)...)
	for _, c := range []struct {
		name string
		list []service.Command
	}{
		{"ExecCondition", slices.DeleteFunc(slices.Clone(svc.StartPre), func(c service.Command) bool { return !c.Condition })},
		{"ExecStartPre", slices.DeleteFunc(slices.Clone(svc.StartPre), func(c service.Command) bool { return c.Condition })},
		{"ExecStart", slices.DeleteFunc(slices.Clone(svc.Start), func(c service.Command) bool { return c.Listen })},
		{"ExecStartPost", svc.StartPost},
		{"ExecReload", svc.Reload},
		{"ExecStop", svc.Stop},
		{"ExecStopPost", svc.StopPost},
	} {
		for _, one := range c.list {
			out = append(out, property{c.name, execProperty(one)})
		}
		if len(c.list) == 0 {
			out = append(out, property{c.name, ""})
		}
	}
	out = append(out, cgroupProperties(st)...)
	out = append(out, limitProperties(svc.Resources)...)
	x := svc.Exec
	mode := string(svc.Kill.Mode)
	if mode == "" {
		mode = string(service.KillControlGroup)
	}
	umask := uint32(0o022)
	if x.UMask != nil {
		umask = *x.UMask
	}
	return append(
		out, property{"Environment", strings.Join(x.Environment, " ")}, property{"UMask", fmt.Sprintf("%04o", umask)},
		property{"WorkingDirectory", x.WorkingDirectory}, property{"RootDirectory", x.RootDirectory},
		property{"User", x.User}, property{"Group", x.Group}, property{"SupplementaryGroups", strings.Join(x.SupplementaryGroups, " ")},
		property{"StandardInput", orElse(x.StandardInput, "null")}, property{"StandardOutput", orElse(x.StandardOutput, "journal")},
		property{"StandardError", orElse(x.StandardError, "inherit")}, property{"NoNewPrivileges", yesNo(x.NoNewPrivileges)},
		property{"Delegate", yesNo(x.Delegate)}, property{"KillMode", mode}, property{"KillSignal", strconv.Itoa(orNumber(svc.Kill.Signal, 15))},
		property{"FinalKillSignal", strconv.Itoa(orNumber(svc.Kill.FinalSignal, 9))}, property{"SendSIGKILL", yesNo(!svc.Kill.NoSIGKILL)},
		property{"SendSIGHUP", yesNo(svc.Kill.SendSIGHUP)},
	)
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func orNone(s string) string { return orElse(s, "none") }

func orNumber(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}

// mainProperties tell of the main process, and of how it ended.
func mainProperties(st service.Status) []property {
	pid, code, status, started, exited, execPID := 0, 0, 0, "", "", 0
	if m := st.Main; m != nil {
		execPID, started = m.PID, stamp(m.Started)
		if m.Exit == nil {
			pid = m.PID
		} else {
			exited = stamp(m.Exit.At)
			switch {
			case m.Exit.Core:
				code, status = cldDumped, m.Exit.Signal
			case m.Exit.Signal != 0:
				code, status = cldKilled, m.Exit.Signal
			default:
				code, status = cldExited, m.Exit.Code
			}
		}
	}
	return []property{
		{"MainPID", strconv.Itoa(pid)},
		{"ExecMainPID", strconv.Itoa(execPID)},
		{"ExecMainCode", strconv.Itoa(code)},
		{"ExecMainStatus", strconv.Itoa(status)},
		{"ExecMainStartTimestamp", started},
		{"ExecMainExitTimestamp", exited},
	}
}

func execProperty(c service.Command) string {
	flag := "no"
	if c.IgnoreFailure {
		flag = "yes"
	}
	return fmt.Sprintf("{ path=%s ; argv[]=%s ; ignore_errors=%s ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }",
		c.Path, strings.Join(c.Argv, " "), flag)
}

// cgroupProperties are what the kernel counts for the service's cgroup.
func cgroupProperties(st service.Status) []property {
	u := usageOf(st)
	number := func(n uint64, known bool) string {
		if !known {
			return "[not set]"
		}
		return strconv.FormatUint(n, 10)
	}
	alive := st.State.Alive() && u.tasks > 0
	return []property{
		{"ControlGroup", cgroupName(st.Cgroup)},
		{"MemoryCurrent", number(u.memory, alive)},
		{"CPUUsageNSec", number(uint64(u.cpu.Nanoseconds()), alive)},
		{"TasksCurrent", number(uint64(u.tasks), alive)},
	}
}

// cgroupName is the path of a cgroup as /proc/PID/cgroup has it.
func cgroupName(dir string) string {
	for _, mount := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if rest, ok := strings.CutPrefix(dir, mount); ok && exists(filepath.Join(mount, "cgroup.procs")) {
			return rest
		}
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
