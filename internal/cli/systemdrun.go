package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

// transientKey marks a group that systemd-run has made. legiond forgets it
// once it has ended: "success" if it did not fail, "always" in any case,
// "never" where the caller does it.
const transientKey = "legion.dev/transient"

// runFlags are those of systemd-run(1).
type runFlags struct {
	unit, description, kind, uid, gid, dir string
	properties, env                        []string
	nice                                   int
	wait, collect, remain, noBlock         bool
	pipe, quiet, sameDir                   bool
	scope                                  bool
	timer                                  timerFlags
}

func runRun(s *session, ctx context.Context, args []string) error {
	var r runFlags
	f := flags("systemd-run")
	f.SetInterspersed(false)
	f.StringVarP(&r.unit, "unit", "u", "", "the name of the unit")
	f.StringArrayVarP(&r.properties, "property", "p", nil, "a directive of a unit file: NAME=VALUE")
	f.StringVar(&r.description, "description", "", "the description of the unit")
	f.StringVar(&r.kind, "service-type", "", "Type= of the service")
	f.StringVar(&r.uid, "uid", "", "the user to run as")
	f.StringVar(&r.gid, "gid", "", "the group to run as")
	f.StringVar(&r.dir, "working-directory", "", "the working directory")
	f.StringArrayVarP(&r.env, "setenv", "E", nil, "a variable of the environment: NAME or NAME=VALUE")
	f.IntVar(&r.nice, "nice", 0, "the nice level")
	f.BoolVar(&r.wait, "wait", false, "wait until the command has ended; exit as it does")
	f.BoolVarP(&r.collect, "collect", "G", false, "forget the unit even if it failed")
	f.BoolVarP(&r.remain, "remain-after-exit", "r", false, "the unit stays active when the command has ended")
	f.BoolVar(&r.noBlock, "no-block", false, "do not wait for the start")
	f.BoolVarP(&r.pipe, "pipe", "P", false, "print what the command writes; it has no input")
	f.BoolVarP(&r.quiet, "quiet", "q", false, "print nothing of its own")
	f.BoolVarP(&r.sameDir, "same-dir", "d", false, "in the working directory of the caller")
	f.String("slice", "", "accepted")
	f.String("expand-environment", "", "accepted")
	accepted(f, "system", "user", "no-ask-password", "send-sighup", "slice-inherit")
	r.timer.add(f)
	for _, n := range []string{"path-property", "socket-property", "machine", "host"} {
		f.String(n, "", "not supported: write a unit file")
	}
	f.BoolVar(&r.scope, "scope", false, "run the command here, with its processes as a unit")
	f.BoolP("pty", "t", false, "not supported: services have no terminal")
	f.BoolP("shell", "S", false, "not supported: services have no terminal")
	if done, err := s.parse(f, args, "systemd-run [OPTION…] COMMAND [ARG…]"); done || err != nil {
		return err
	}
	var unsupported []string
	f.Visit(func(x *pflag.Flag) {
		if strings.HasPrefix(x.Usage, "not supported") {
			unsupported = append(unsupported, "--"+x.Name+" is "+x.Usage)
		}
	})
	if len(unsupported) > 0 {
		return &Exit{exitFailure, errors.New("systemd-run: " + strings.Join(unsupported, "; "))}
	}
	timer := r.timer.set()
	switch {
	case timer && (r.wait || r.pipe || r.scope):
		return &Exit{exitFailure, errors.New("systemd-run: --wait, --pipe and --scope do not go together with a timer")}
	case r.scope && (r.wait || r.pipe || r.uid != "" || r.gid != "" || r.remain || r.kind != ""):
		return &Exit{exitFailure, errors.New("systemd-run: with --scope the command runs here, as who calls: --wait, --pipe, --uid, --gid, --remain-after-exit and --service-type mean nothing")}
	case timer && f.NArg() == 0 && r.unit != "":
		return s.runTimer(ctx, &r, nil)
	}
	if f.NArg() == 0 {
		return &Exit{exitFailure, errors.New("systemd-run: name the command to run")}
	}
	g, err := r.group(f.Args())
	if err != nil {
		return &Exit{exitFailure, fmt.Errorf("systemd-run: %w", err)}
	}
	switch {
	case timer:
		return s.runTimer(ctx, &r, &g)
	case r.scope:
		return s.runScope(ctx, &r, g)
	}
	return s.transient(ctx, &r, g)
}

// group compiles the unit as if it had been written into a file.
func (r *runFlags) group(argv []string) (service.Group, error) {
	name := "run-r" + strings.ToLower(rand.Text()) + ".service"
	if r.unit != "" {
		var err error
		if name, err = unitNameOr(strings.TrimSuffix(r.unit, ".service"), ".service"); err != nil {
			return service.Group{}, err
		}
	}
	path, err := exec.LookPath(argv[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return service.Group{}, fmt.Errorf("failed to find executable %s: %w", argv[0], err)
	}
	f := &unitfile.File{Path: "systemd-run"}
	set := func(section, key, value string) {
		if value != "" {
			f.Entries = append(f.Entries, unitfile.Entry{Section: section, Key: key, Value: value, File: f.Path})
		}
	}
	set("Service", "ExecStart", "/bin/true") // the real one is put in below, as it is
	set("Unit", "Description", orElse(r.description, path+" "+strings.Join(argv[1:], " ")))
	set("Service", "Type", r.kind)
	set("Service", "User", r.uid)
	set("Service", "Group", r.gid)
	if r.nice != 0 {
		set("Service", "Nice", fmt.Sprint(r.nice))
	}
	if r.remain {
		set("Service", "RemainAfterExit", "yes")
	}
	if r.sameDir {
		r.dir, _ = os.Getwd()
	}
	set("Service", "WorkingDirectory", r.dir)
	for _, p := range r.properties {
		key, value, ok := strings.Cut(p, "=")
		section := "Service"
		if unitfile.Lookup("Service", key) == nil && unitfile.Lookup("Unit", key) != nil {
			section = "Unit"
		}
		if !ok || unitfile.Lookup(section, key) == nil {
			return service.Group{}, fmt.Errorf("unknown assignment: %s", p)
		}
		set(section, key, value)
	}
	g, err := unitfile.Compile(name, f, nil, unitdir.ThisMachine())
	if err != nil {
		return g, err
	}
	x := &g.Services[0]
	for _, e := range r.env {
		if !strings.Contains(e, "=") {
			e += "=" + os.Getenv(e)
		}
		x.Exec.Environment = append(x.Exec.Environment, e)
	}
	x.Start = []service.Command{{Path: path, Argv: append([]string{path}, argv[1:]...)}}
	g.Source.Files = nil
	g.Annotations = map[string]string{transientKey: r.keep()}
	return g, nil
}

func (r *runFlags) keep() string {
	switch {
	case r.wait || r.pipe:
		return "never"
	case r.collect:
		return "always"
	}
	return "success"
}

func (s *session) transient(ctx context.Context, r *runFlags, g service.Group) error {
	c := s.client()
	defer c.Close()
	if old, err := c.Group(ctx, g.Name); err == nil {
		return &Exit{exitFailure, fmt.Errorf("Failed to start transient service unit: Unit %s was already loaded (%s)", g.Name, old.ActiveState)} //lint:ignore ST1005 systemd-run's words
	}
	if _, err := c.Put(ctx, g); err != nil {
		return explained(err)
	}
	if !r.quiet {
		fmt.Fprintf(s.Err, "Running as unit: %s\n", g.Name)
	}
	if !r.wait && !r.pipe {
		if _, err := c.Do(ctx, g.Name, "start", !r.noBlock); err != nil {
			return explained(err)
		}
		return nil
	}
	return s.awaitTransient(ctx, c, r, g)
}

// awaitTransient watches the unit to its end, and exits as its command did.
func (s *session) awaitTransient(ctx context.Context, c *hostclient.Client, r *runFlags, g service.Group) error {
	began := time.Now()
	_, startErr := c.Do(ctx, g.Name, "start", false)
	over := errors.New("over")
	var st service.Status
	err := c.Watch(ctx, func(ev hostapi.Event) error {
		if ev.Name != g.Name || ev.Group == nil || len(ev.Group.Status.Services) == 0 {
			return nil
		}
		st = ev.Group.Status.Services[0]
		if !st.State.Alive() && st.Main != nil && st.Main.Exit != nil || st.State == service.Failed {
			return over
		}
		return nil
	})
	if r.pipe {
		_ = oneLog(context.WithoutCancel(ctx), c, g.Name, hostapi.LogQuery{Tail: -1}, func(l logLine) error {
			w := s.Out
			if l.Stream == "stderr" {
				w = s.Err
			}
			_, err := fmt.Fprintln(w, l.Text)
			return err
		})
	}
	if st.Result == "" || st.Result == service.Success || r.collect || ctx.Err() != nil {
		_ = c.Delete(context.WithoutCancel(ctx), g.Name, nil)
	}
	switch {
	case !errors.Is(err, over):
		return explained(err)
	case st.Main == nil || st.Main.Exit == nil:
		return explained(startErr)
	}
	code, how := st.Main.Exit.Code, fmt.Sprintf("code=exited/status=%d", st.Main.Exit.Code)
	if n := st.Main.Exit.Signal; n != 0 {
		code, how = exitFailure, "code=killed/status="+strings.TrimPrefix(unitfile.SignalName(n), "SIG")
	}
	if !r.quiet && r.wait {
		result := orElse(string(st.Result), string(service.Success))
		fmt.Fprintf(s.Err, "Finished with result: %s\nMain processes terminated with: %s\nService runtime: %s\n", result, how, calendar.FormatDuration(time.Since(began).Truncate(time.Millisecond)))
	}
	if code != 0 && !slices.Contains(g.Services[0].SuccessStatus.Codes, code) {
		return &Exit{Status: code}
	}
	return nil
}
