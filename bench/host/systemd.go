package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

// enter makes a process systemd, see the file.
//
//go:embed systemd.sh
var enter string

// systemdUnits writes the same services as legiond has, and nothing else: no
// unit of the distribution is seen, and no journal runs.
func systemdUnits(program string) func(dir, daemon string, n int) ([]string, error) {
	return func(dir, daemon string, n int) ([]string, error) {
		units := filepath.Join(dir, "units")
		if err := file(0o644, "[Unit]\nDefaultDependencies=no\n", units, "default.target"); err != nil {
			return nil, err
		}
		wants := filepath.Join(units, "default.target.wants")
		if err := os.MkdirAll(wants, 0o755); err != nil {
			return nil, err
		}
		for i := range n {
			// Without default dependencies: there is no sysinit.target here.
			unit := fmt.Sprintf("[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n[Service]\nExecStart=%s %s/wait\nRestart=always\nRestartSec=0\n", daemon, dir)
			if err := file(0o644, unit, units, name(i)+".service"); err != nil {
				return nil, err
			}
			if err := os.Symlink("../"+name(i)+".service", filepath.Join(wants, name(i)+".service")); err != nil {
				return nil, err
			}
		}
		return []string{"/bin/sh", "-c", enter, "systemd.sh", program, units}, nil
	}
}

// systemdBegin starts the command as process 1 of its own namespaces, in a
// cgroup of its own, as a container manager does.
func systemdBegin(cmd *exec.Cmd) error {
	if err := os.Mkdir(ownCgroup(), 0o755); err != nil {
		return err
	}
	dir, err := os.Open(ownCgroup())
	if err != nil {
		return err
	}
	defer dir.Close()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	return cmd.Start()
}

// systemdRequests asks from within systemd's namespaces: it answers nobody whose
// process it cannot see.
func systemdRequests(_ string, pid, times int) (reload, list []time.Duration, err error) {
	own, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(pid), "--all", own, "-ask-systemd", strconv.Itoa(times))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, nil, err
	}
	var both [2][]time.Duration
	return both[0], both[1], json.Unmarshal(out, &both)
}

// askSystemd makes the requests that systemctl makes for daemon-reload and for
// list-units, over the same socket, and writes how long each took.
func askSystemd(times int) error {
	conn, err := dbus.Dial("unix:path=/run/systemd/private")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return err
	}
	manager := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	if err := wake(manager); err != nil {
		return err
	}
	var both [2][]time.Duration
	for i, method := range []string{"Reload", "ListUnits"} {
		both[i], err = repeat(times, func() error {
			return manager.Call("org.freedesktop.systemd1.Manager."+method, 0).Err
		})
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(both)
}

// wake asks until there is an answer: what reaches systemd in one read with the
// end of the authentication lies there until more comes.
func wake(manager dbus.BusObject) error {
	const times = 50
	answers := make(chan *dbus.Call, times)
	for range times {
		manager.Go("org.freedesktop.DBus.Peer.Ping", 0, answers)
		select {
		case call := <-answers:
			return call.Err
		case <-time.After(100 * time.Millisecond):
		}
	}
	return errors.New("no answer within five seconds")
}
