package hostd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// pipes are the standard streams of a command: the process's ends and ours.
func pipes(t *testing.T) (theirs [3]*os.File, in io.WriteCloser, out *os.File) {
	t.Helper()
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inWrite.Close(); outRead.Close() })
	return [3]*os.File{inRead, outWrite, outWrite}, inWrite, outRead
}

// exec runs a command in a group's service main and returns what it has
// written.
func (d *daemon) exec(group, script, input string) (string, service.Exit, error) {
	d.t.Helper()
	theirs, in, out := pipes(d.t)
	go func() {
		_, _ = io.WriteString(in, input)
		in.Close()
	}()
	text := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(out)
		text <- string(data)
	}()
	exit, err := d.client.Exec(d.ctx, group, hostapi.ExecRequest{Argv: []string{"sh", "-c", script}}, theirs)
	return <-text, exit, err
}

// TestExec: a command runs in all that surrounds a service's process, also when
// legiond is another one than the one that has started it.
func TestExec(t *testing.T) {
	dir := t.TempDir()
	g := pod("web", "exec sleep 1000")
	g.Services[0].Exec = service.ExecContext{CleanEnvironment: true, Environment: []string{"PATH=/usr/bin:/bin", "COLOR=blue"}, WorkingDirectory: dir}
	who := strconv.Itoa(os.Geteuid())
	if os.Geteuid() == 0 {
		who = "65534"
		inside := filepath.Join(dir, "inside")
		for _, d := range []string{inside, filepath.Join(dir, "source")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "source/hello"), []byte("#!/bin/sh\necho hello"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // the test's own, for another user
			t.Fatal(err)
		}
		g.Services[0].Exec.User, g.Services[0].Exec.Group = "65534", "65534"
		g.Services[0].Exec.Mounts = []service.Mount{{Source: filepath.Join(dir, "source"), Target: inside}}
		g.Services[0].Exec.Environment[0] += ":" + inside
	}
	d := newDaemon(t, nil)
	d.put(g)
	pid := d.running("web").Main.PID
	look := func(when string) {
		t.Helper()
		out, exit, err := d.exec("web", `read line; echo $line $COLOR $(pwd) $(id -u); exit 42`, "asked\n")
		if want := fmt.Sprintf("asked blue %s %s\n", dir, who); err != nil || out != want || exit.Code != 42 {
			t.Errorf("%s: %q, %+v, %v, want %q", when, out, exit, err, want)
		}
		out, _, err = d.exec("web", `cat /proc/self/cgroup; readlink /proc/self/ns/mnt`, "")
		cgroup, err1 := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		ns, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if want := string(cgroup) + ns + "\n"; err != nil || err1 != nil || err2 != nil || out != want {
			t.Errorf("%s: it is in %q, %v, the service in %q", when, out, err, want)
		}
		if os.Geteuid() == 0 {
			// Found by name where only the service sees it.
			if out, _, err := d.exec("web", `hello`, ""); err != nil || out != "hello\n" {
				t.Errorf("%s: %q, %v", when, out, err)
			}
		}
	}
	look("at first")
	d.crash()
	d.start()
	if now := d.running("web").Main.PID; now != pid {
		t.Fatalf("process %d is %d now", pid, now)
	}
	look("after a crash of legiond")

	theirs, _, _ := pipes(t)
	if _, err := d.client.Exec(d.ctx, "web", hostapi.ExecRequest{Argv: []string{"no-such-command"}}, theirs); err == nil || !strings.Contains(err.Error(), `find command "no-such-command"`) {
		t.Errorf("no such command: %v", err)
	}
	d.must("web", "stop")
	for group, want := range map[string]string{"web": "has no process now", "nobody": "there is no group nobody"} {
		if _, _, err := d.exec(group, "true", ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("in %s: %v, want %q", group, err, want)
		}
	}
}

// TestExecEnds: a command whose client is gone is killed, and so is one whose
// service ends.
func TestExecEnds(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(pod("web", "exec sleep 1000"))
	main := d.running("web").Main.PID
	for _, name := range []string{"the client hangs up", "the service ends"} {
		ctx, cancel := context.WithCancel(d.ctx)
		defer cancel()
		theirs, _, out := pipes(t)
		ended := make(chan error, 1)
		go func() {
			exit, err := d.client.Exec(ctx, "web", hostapi.ExecRequest{Argv: []string{"sh", "-c", "trap '' HUP TERM INT; echo $$; while :; do sleep 1000; done"}}, theirs)
			if err == nil && exit.Signal != int(syscall.SIGKILL) {
				err = fmt.Errorf("exit %+v", exit)
			}
			ended <- err
		}()
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if name == "the client hangs up" {
			cancel()
		} else {
			kill(t, main)
		}
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(20*time.Second/time.Millisecond)); n != 1 {
			t.Errorf("%s, and the command runs on: %v", name, err)
		}
	}
}
