package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// supervisor is one candidate: how it is told of its services, and started.
type supervisor struct {
	name string
	// program is what must be there.
	program string
	// write puts n services that run daemon into dir and returns the command.
	write func(dir, daemon string, n int) ([]string, error)
	// begin, where there is one, starts the command, which takes more than that.
	begin func(cmd *exec.Cmd) error
	// requests, where they are measured, has it read its units again and list
	// them, each a number of times. pid is the command's process.
	requests func(dir string, pid, times int) (reload, list []time.Duration, err error)
}

// missing says why it cannot be measured; empty if it can.
func (s *supervisor) missing() string {
	path, err := exec.LookPath(s.program)
	switch {
	case err != nil:
		return "not found"
	case s.begin != nil && os.Geteuid() != 0:
		return "needs root"
	case s.begin != nil && ownCgroup() == "":
		return "needs cgroup2"
	}
	s.program = path
	return ""
}

func (s *supervisor) start(cmd *exec.Cmd) error {
	if s.begin != nil {
		return s.begin(cmd)
	}
	return cmd.Start()
}

func name(i int) string { return fmt.Sprintf("bench%04d", i) }

func file(mode os.FileMode, content string, path ...string) error {
	p := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(content), mode)
}

// systemd is where Debian's package has it. It need not run on the machine.
const systemd = "/usr/lib/systemd/systemd"

func supervisors(bin string) []*supervisor {
	legiond := filepath.Join(bin, "legiond")
	if abs, err := filepath.Abs(legiond); err == nil {
		legiond = abs
	}
	return []*supervisor{
		{name: "legiond", program: legiond, requests: legiondRequests, write: func(dir, daemon string, n int) ([]string, error) {
			for i := range n {
				unit := fmt.Sprintf("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=%s %s/wait\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n", daemon, dir)
				if err := file(0o644, unit, dir, "units", name(i)+".service"); err != nil {
					return nil, err
				}
			}
			return []string{legiond, "--cgroup", cmp.Or(ownCgroup(), "none"), "--dir", dir, "--units", filepath.Join(dir, "units"), "--boot", "all"}, nil
		}},
		{name: "systemd", program: systemd, begin: systemdBegin, requests: systemdRequests, write: systemdUnits(systemd)},
		{name: "runit", program: "runsvdir", write: func(dir, daemon string, n int) ([]string, error) {
			return []string{"runsvdir", "-P", filepath.Join(dir, "sv")}, runScripts(dir, daemon, n)
		}},
		{name: "s6", program: "s6-svscan", write: func(dir, daemon string, n int) ([]string, error) {
			return []string{"s6-svscan", "-c", fmt.Sprint(2*n + 10), filepath.Join(dir, "sv")}, runScripts(dir, daemon, n)
		}},
		{name: "daemontools", program: "svscan", write: func(dir, daemon string, n int) ([]string, error) {
			return []string{"svscan", filepath.Join(dir, "sv")}, runScripts(dir, daemon, n)
		}},
		{name: "supervisord", program: "supervisord", write: func(dir, daemon string, n int) ([]string, error) {
			var b strings.Builder
			fmt.Fprintf(&b, "[supervisord]\nnodaemon=true\nlogfile=%s/log\npidfile=%s/pid\nchildlogdir=%s\nuser=root\nminfds=%d\n", dir, dir, dir, 4*n+1000)
			for i := range n {
				fmt.Fprintf(&b, "[program:%s]\ncommand=%s %s/wait\nautorestart=true\nstartsecs=1\nstdout_logfile=NONE\nstderr_logfile=NONE\n", name(i), daemon, dir)
			}
			conf := filepath.Join(dir, "supervisord.conf")
			return []string{"supervisord", "-c", conf}, file(0o644, b.String(), conf)
		}},
	}
}

// runScripts makes service directories. The daemon is a shell that executes a
// script; here the script itself, so that no other program comes in between.
func runScripts(dir, daemon string, n int) error {
	for i := range n {
		if err := file(0o755, "#!"+daemon+"\n"+script(dir), dir, "sv", name(i), "run"); err != nil {
			return err
		}
	}
	return nil
}

// script waits for ever, with nothing but what a shell has built in: nobody
// ever writes to the FIFO.
func script(dir string) string { return "read x <" + filepath.Join(dir, "never") + "\n" }
