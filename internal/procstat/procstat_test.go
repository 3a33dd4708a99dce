package procstat

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSelf(t *testing.T) {
	s, err := Read(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	session, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	if s.Number(Parent) != os.Getppid() || s.Number(Group) != unix.Getpgrp() || s.Number(Session) != session || s.Over() {
		t.Errorf("%+v", s)
	}
	if s.Number(StartTime) == 0 || s.Number(Threads) < 1 || s.Number(Resident) == 0 || s.Number(Size) == 0 {
		t.Errorf("%+v", s)
	}
}

// TestOver: a child that has ended and is not collected.
func TestOver(t *testing.T) {
	c := exec.Command("/bin/sh", "-c", "exit 3")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Wait() }() // its status is 3
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, c.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	s, err := Read(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Over() || s.State() != 'Z' || s.Number(ExitCode) != 3<<8 || s.Number(EnvEnd) != 0 || s.Number(Size) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestNames: the command's name is the process's own to choose.
func TestNames(t *testing.T) {
	name := filepath.Join(t.TempDir(), "stat")
	for _, comm := range []string{"a", "a b) Z 1 (", ")", "(", ""} {
		line := fmt.Sprintf("7 (%s) S 1 2 3%s 99%s\n", comm, strings.Repeat(" 0", 15), strings.Repeat(" 5", 30))
		if err := os.WriteFile(name, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := ReadFile(name)
		if err != nil || s.State() != 'S' || s.Number(Parent) != 1 || s.Number(Session) != 3 || s.Number(StartTime) != 99 || s.Number(ExitCode) != 5 {
			t.Errorf("%q: %v %+v", comm, err, s)
		}
	}
	for _, text := range []string{"", "7", "7 (a", "7 (a)", "7 (a) S 1 2"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := ReadFile(name); err == nil {
			t.Errorf("%q is understood: %+v", text, s)
		}
	}
}
