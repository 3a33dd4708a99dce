package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"legion.dev/legion/internal/notify"
)

// runNotify is systemd-notify(1).
func runNotify(s *session, ctx context.Context, args []string) error {
	f := flags("systemd-notify")
	ready := f.Bool("ready", false, "tell that the service is ready")
	reloading := f.Bool("reloading", false, "tell that it reads its configuration again")
	stopping := f.Bool("stopping", false, "tell that it is about to end")
	pid := f.String("pid", "", "its main process: a number, auto or parent")
	f.Lookup("pid").NoOptDefVal = "auto"
	status := f.String("status", "", "a line on how it is")
	booted := f.Bool("booted", false, "exit with 0 where systemd, or legiond in its place, runs the machine")
	command := f.Bool("exec", false, "run the command behind ; afterwards")
	f.String("uid", "", "accepted")
	accepted(f, "no-block")
	if done, err := s.parse(f, args, "systemd-notify [OPTION…] [VARIABLE=VALUE…]"); done || err != nil {
		return err
	}
	if *booted {
		if !exists("/run/systemd/system") {
			return &Exit{Status: exitFailure}
		}
		return nil
	}
	var lines []string
	for _, l := range []struct {
		set  bool
		text string
	}{{*ready, "READY=1"}, {*reloading, "RELOADING=1"}, {*stopping, "STOPPING=1"}, {f.Changed("status"), "STATUS=" + *status}} {
		if l.set {
			lines = append(lines, l.text)
		}
	}
	switch *pid {
	case "":
	case "auto", "parent":
		lines = append(lines, "MAINPID="+strconv.Itoa(os.Getppid()))
	default:
		lines = append(lines, "MAINPID="+*pid)
	}
	rest := f.Args()
	var behind []string
	for i, a := range rest {
		if a == ";" && *command {
			rest, behind = rest[:i], rest[i+1:]
			break
		}
	}
	lines = append(lines, rest...)
	if len(lines) == 0 {
		return &Exit{exitFailure, errors.New("systemd-notify: nothing to tell: name at least one state or variable")}
	}
	sent, err := notify.Send(strings.Join(lines, "\n"))
	if err != nil {
		return &Exit{exitFailure, fmt.Errorf("cannot notify the service manager: %w", err)}
	}
	if !sent {
		return &Exit{exitFailure, errors.New("cannot notify the service manager: $NOTIFY_SOCKET is not set")}
	}
	if len(behind) > 0 {
		return s.exec(ctx, behind, s.Out, s.Err)
	}
	return nil
}

// exec runs a command and ends as it does.
func (s *session) exec(ctx context.Context, argv []string, out, errs io.Writer) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, out, errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &Exit{Status: exit.ExitCode()}
	}
	if err != nil {
		return &Exit{exitFailure, err}
	}
	return nil
}

// runCat is systemd-cat(1): the command's output goes to where the caller's
// does, which in a unit is Legion's log.
func runCat(s *session, ctx context.Context, args []string) error {
	f := flags("systemd-cat")
	f.SetInterspersed(false)
	f.StringP("identifier", "t", "", "accepted; lines carry the unit's name")
	priority := f.StringP("priority", "p", "", "the priority of the lines")
	f.String("stderr-priority", "", "accepted")
	f.Bool("level-prefix", true, "accepted")
	if done, err := s.parse(f, args, "systemd-cat [OPTION…] [COMMAND [ARG…]]"); done || err != nil {
		return err
	}
	prefix := ""
	if *priority != "" {
		n, err := parsePriority(*priority)
		if err != nil {
			return &Exit{exitFailure, err}
		}
		prefix = fmt.Sprintf("<%d>", n)
	}
	out := &prefixed{w: s.Out, prefix: prefix, fresh: true}
	if f.NArg() == 0 {
		_, err := io.Copy(out, s.In)
		return err
	}
	return s.exec(ctx, f.Args(), out, out)
}

// prefixed writes a prefix in front of each line.
type prefixed struct {
	w      io.Writer
	prefix string
	fresh  bool
}

func (p *prefixed) Write(data []byte) (int, error) {
	var b strings.Builder
	for _, l := range strings.SplitAfter(string(data), "\n") {
		if l == "" {
			continue
		}
		if p.fresh {
			b.WriteString(p.prefix)
		}
		b.WriteString(l)
		p.fresh = strings.HasSuffix(l, "\n")
	}
	if _, err := io.WriteString(p.w, b.String()); err != nil {
		return 0, err
	}
	return len(data), nil
}
