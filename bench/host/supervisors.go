package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// supervisor is one candidate: how it is told of its services, and started.
type supervisor struct {
	name string
	// program is what must be there.
	program string
	// write puts n services that run daemon into dir and returns the command.
	write func(dir, daemon string, n int) ([]string, error)
}

func (s *supervisor) there() bool {
	path, err := exec.LookPath(s.program)
	if err == nil {
		s.program = path
	}
	return err == nil
}

func name(i int) string { return fmt.Sprintf("bench%04d", i) }

func file(mode os.FileMode, content string, path ...string) error {
	p := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(content), mode)
}

func supervisors(bin string) []*supervisor {
	legiond := filepath.Join(bin, "legiond")
	if abs, err := filepath.Abs(legiond); err == nil {
		legiond = abs
	}
	return []*supervisor{
		{"legiond", legiond, func(dir, daemon string, n int) ([]string, error) {
			for i := range n {
				unit := fmt.Sprintf("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=%s %s/wait\nRestart=always\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n", daemon, dir)
				if err := file(0o644, unit, dir, "units", name(i)+".service"); err != nil {
					return nil, err
				}
			}
			return []string{legiond, "--dir", dir, "--units", filepath.Join(dir, "units"), "--boot", "all"}, nil
		}},
		{"runit", "runsvdir", func(dir, daemon string, n int) ([]string, error) {
			return []string{"runsvdir", "-P", filepath.Join(dir, "sv")}, runScripts(dir, daemon, n)
		}},
		{"s6", "s6-svscan", func(dir, daemon string, n int) ([]string, error) {
			return []string{"s6-svscan", "-c", fmt.Sprint(2*n + 10), filepath.Join(dir, "sv")}, runScripts(dir, daemon, n)
		}},
		{"daemontools", "svscan", func(dir, daemon string, n int) ([]string, error) {
			return []string{"svscan", filepath.Join(dir, "sv")}, runScripts(dir, daemon, n)
		}},
		{"supervisord", "supervisord", func(dir, daemon string, n int) ([]string, error) {
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
