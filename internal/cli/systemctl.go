package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// systemctl is one call of systemctl(1).
type systemctl struct {
	*session
	file          fileFlags
	show          showFlags
	editing       editFlags
	deps          branches
	types, states []string
	noBlock       bool
	noLegend      bool
	plain         bool
	failed        bool
	user          bool
	forced        int
	lines         int
	signal        string
	whom          string
	reboot        string
	what          []string
	// args are those behind the verb.
	args []string
}

// exitNotInstalled is the LSB's "program is not installed", which systemctl
// returns where a unit to start is not there.
const exitNotInstalled = 5

func (c *systemctl) flags() *pflag.FlagSet {
	f := flags("systemctl")
	f.StringVar(&c.file.root, "root", "", "work on the unit files below this directory")
	f.BoolVar(&c.file.now, "now", false, "also start or stop the units")
	f.BoolVar(&c.file.runtime, "runtime", false, "until the next boot only")
	f.CountVarP(&c.forced, "force", "f", "replace links that point elsewhere; end the machine without stopping units")
	f.StringVar(&c.reboot, "reboot-argument", "", "given to reboot(2)")
	f.BoolVarP(&c.file.quiet, "quiet", "q", false, "print less")
	f.BoolVar(&c.file.noReload, "no-reload", false, "do not have the manager read its files again")
	f.BoolVar(&c.file.noWarn, "no-warn", false, "do not warn of units without [Install]")
	f.BoolVarP(&c.file.full, "full", "l", false, "do not shorten")
	f.StringVar(&c.file.presetMode, "preset-mode", "full", "full, enable-only or disable-only")
	c.editing.add(f)
	f.BoolVar(&c.deps.reverse, "reverse", false, "the units that bring the given ones with them")
	f.BoolVar(&c.deps.before, "before", false, "the units ordered after the given ones")
	f.BoolVar(&c.deps.after, "after", false, "the units ordered before the given ones")
	f.StringSliceVarP(&c.show.properties, "property", "p", nil, "only these properties")
	f.StringSliceVarP(&c.show.properties, "value-of", "P", nil, "only these properties, without their names")
	f.BoolVar(&c.show.value, "value", false, "properties without their names")
	f.BoolVarP(&c.show.all, "all", "a", false, "also what is empty or not active")
	f.StringSliceVarP(&c.types, "type", "t", nil, "only units of these types")
	f.StringSliceVar(&c.states, "state", nil, "only units in these states")
	f.BoolVar(&c.failed, "failed", false, "only units that have failed")
	f.BoolVar(&c.noBlock, "no-block", false, "do not wait")
	f.BoolVar(&c.noLegend, "no-legend", false, "no heading and no count")
	f.BoolVar(&c.plain, "plain", false, "no marks in front")
	f.BoolVar(&c.user, "user", false, "the user's own service manager")
	f.IntVarP(&c.lines, "lines", "n", 10, "lines of output to show")
	f.StringVarP(&c.signal, "signal", "s", "TERM", "the signal of kill")
	f.StringVar(&c.whom, "kill-whom", "all", "main, control or all")
	f.StringVar(&c.whom, "kill-who", "all", "as --kill-whom")
	f.StringVar((*string)(&c.jobMode), "job-mode", "", "replace, fail, replace-irreversibly, isolate, flush, ignore-dependencies or ignore-requirements")
	f.Bool("fail", false, "--job-mode=fail")
	f.Bool("ignore-dependencies", false, "--job-mode=ignore-dependencies")
	f.StringVarP(&c.output, "output", "o", "", "json, or a form of journalctl's")
	f.StringSliceVar(&c.what, "what", nil, "what clean removes: configuration, state, cache, logs, runtime, fdstore, all (cache, runtime and fdstore)")
	f.StringP("host", "H", "", "refused: ask there")
	f.StringP("machine", "M", "", "refused: ask there")
	f.String("message", "", "accepted")
	f.String("check-inhibitors", "auto", "accepted")
	f.String("timestamp", "pretty", "accepted")
	f.String("legend", "yes", "no: no heading and no count")
	accepted(f, "system", "global", "no-pager", "no-ask-password", "no-wall",
		"with-dependencies", "recursive", "wait", "show-types", "show-transaction", "ignore-inhibitors", "dry-run", "marked", "mkdir", "read-only")
	return f
}

func runSystemctl(s *session, ctx context.Context, args []string) error {
	c := &systemctl{session: s}
	f := c.flags()
	if done, err := s.parse(f, args, "systemctl [OPTION…] COMMAND [UNIT…]"); done || err != nil {
		return err
	}
	for _, name := range []string{"host", "machine"} {
		if f.Changed(name) && !c.user {
			return &Exit{exitFailure, fmt.Errorf("systemctl: --%s is not supported: call systemctl there", name)}
		}
	}
	c.file.force = c.forced > 0
	for _, mode := range []service.JobMode{service.JobFail, service.JobIgnoreDependencies} {
		if on, _ := f.GetBool(string(mode)); on {
			c.jobMode = mode
		}
	}
	if f.Changed("value-of") {
		c.show.value = true
	}
	if v, _ := f.GetString("legend"); v == "no" || v == "false" || v == "0" {
		c.noLegend = true
	}
	if c.failed {
		c.states = append(c.states, "failed")
	}
	verb := "list-units"
	if f.NArg() > 0 {
		verb, c.args = f.Arg(0), f.Args()[1:]
	}
	if s.output != "" && s.output != "json" && s.output != "json-pretty" {
		s.output = "" // status takes journalctl's forms
	}
	if s.output == "json-pretty" {
		s.output = "json"
	}
	return c.run(ctx, verb)
}

// fileVerbs are the verbs that need no manager.
var fileVerbs = []string{"enable", "disable", "reenable", "mask", "unmask", "preset", "preset-all", "link", "revert"}

func (c *systemctl) run(ctx context.Context, verb string) error {
	switch verb {
	case "list-unit-files":
		return c.listUnitFiles(ctx, c.args, c.types, c.states, c.noLegend, &c.file)
	case "is-enabled":
		return c.isEnabled(ctx, c.args, &c.file)
	case "cat":
		return c.cat(ctx, c.args, &c.file)
	case "is-system-running":
		return c.isSystemRunning(ctx)
	case "daemon-reload", "daemon-reexec":
		return c.reloadManager(ctx)
	case "get-default", "set-default":
		return c.defaultTarget(ctx, verb)
	case "edit":
		if len(c.args) == 0 {
			return tooFew()
		}
		return c.edit(ctx, c.args, &c.file, c.editing)
	case "set-property":
		return c.setProperty(ctx)
	case "add-wants", "add-requires":
		return c.addDependencies(ctx, verb)
	case "help", "cancel", "whoami", "mount-image", "switch-root", "rescue", "emergency", "suspend", "hibernate", "hybrid-sleep", "attach", "bind":
		return &Exit{exitFailure, fmt.Errorf("systemctl: %s is not supported by legion", verb)}
	}
	if slices.Contains(fileVerbs, verb) {
		if len(c.args) == 0 && verb != "preset-all" {
			return tooFew()
		}
		return c.unitFileVerb(ctx, verb, c.args, &c.file)
	}
	return c.manager(ctx, verb)
}

func tooFew() error { return &Exit{exitFailure, errors.New("Too few arguments.")} } //lint:ignore ST1005 systemctl's words

// manager carries out the verbs that ask legiond.
func (c *systemctl) manager(ctx context.Context, verb string) error {
	client := c.client()
	defer client.Close()
	switch verb {
	case "start", "stop", "restart", "reload", "try-restart", "condrestart", "reload-or-restart", "force-reload",
		"try-reload-or-restart", "reload-or-try-restart", "isolate":
		if len(c.args) == 0 {
			return tooFew()
		}
		return c.offline(c.jobs(ctx, client, verb))
	case "clean", "freeze", "thaw":
		return c.offline(c.freezer(ctx, client, verb))
	case "kill":
		return c.offline(c.kill(ctx, client))
	case "reset-failed":
		return c.offline(c.resetFailed(ctx, client))
	case "is-active", "is-failed":
		if len(c.args) == 0 {
			return tooFew()
		}
		good := map[string][]string{"is-active": {"active", "reloading"}, "is-failed": {"failed"}}[verb]
		err := c.isState(ctx, c.args, good, c.file.quiet)
		var e *Exit
		if errors.As(err, &e) && e.Err != nil {
			// Without a manager nothing is active.
			if !c.file.quiet {
				fmt.Fprintln(c.Out, "inactive")
			}
			return &Exit{Status: exitNotRunning}
		}
		return err
	case "show":
		return c.offline(c.session.show(ctx, c.args, c.show))
	case "status":
		return c.offline(c.status(ctx, client))
	case "list-units", "list-timers", "list-sockets", "list-jobs", "list-dependencies", "list-machines", "list-automounts", "list-paths":
		return c.offline(c.list(ctx, client, verb))
	case "poweroff", "reboot", "halt", "kexec", "exit":
		return c.offline(c.power(ctx, client, verb))
	case "set-environment", "unset-environment", "import-environment":
		fmt.Fprintf(c.Err, "systemctl: %s changes nothing: services get no environment from the manager, write Environment= into a drop-in\n", verb)
		return nil
	case "show-environment", "log-level", "log-target", "service-watchdogs":
		return nil
	case "default":
		c.args = []string{"default.target"}
		return c.offline(c.jobs(ctx, client, "start"))
	}
	return &Exit{exitFailure, fmt.Errorf("Unknown command verb %s.", verb)} //lint:ignore ST1005 systemctl's words
}

// offline says in systemctl's way that there is no manager.
func (c *systemctl) offline(err error) error {
	if !unreachable(err) {
		var e *Exit
		if errors.As(err, &e) {
			return err
		}
		return explained(err)
	}
	if inChroot() {
		fmt.Fprintln(c.Err, "Running in chroot, ignoring command.")
		return nil
	}
	return &Exit{exitFailure, fmt.Errorf("System has not been booted with legiond as its service manager. Can't operate.\n%w", explained(err))} //lint:ignore ST1005 systemctl's words
}

// inChroot says whether the root directory is another than that of PID 1.
func inChroot() bool {
	own, err1 := os.Stat("/")
	init, err2 := os.Stat("/proc/1/root/.")
	return err1 == nil && err2 == nil && !os.SameFile(own, init)
}

func (c *systemctl) kill(ctx context.Context, client *hostclient.Client) error {
	if len(c.args) == 0 {
		return tooFew()
	}
	number, err := unitfile.ParseSignal(c.signal)
	if err != nil {
		return &Exit{exitFailure, fmt.Errorf("Failed to parse signal string %s.", c.signal)} //lint:ignore ST1005 systemctl's words
	}
	groups, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, a := range c.args {
		found := c.meant(ctx, client, groups, a)
		if len(found) == 0 {
			failures = append(failures, &Exit{exitFailure, fmt.Errorf("Failed to kill unit %s: Unit %s not loaded.", a, a)}) //lint:ignore ST1005 systemctl's words
		}
		for _, g := range found {
			if err := client.Kill(ctx, g.Spec.Name, c.whom, number); err != nil && c.whom != "all" {
				failures = append(failures, failedTo("kill unit "+g.Spec.Name, err))
			}
		}
	}
	return worst(failures)
}

func (c *systemctl) resetFailed(ctx context.Context, client *hostclient.Client) error {
	groups, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	var chosen []hostapi.Group
	for _, a := range c.args {
		found := c.meant(ctx, client, groups, a)
		if len(found) == 0 && !strings.ContainsAny(a, "*?[") {
			return &Exit{exitFailure, fmt.Errorf("Failed to reset failed state of unit %s: Unit %s not loaded.", a, a)} //lint:ignore ST1005 systemctl's words
		}
		chosen = append(chosen, found...)
	}
	for _, g := range groups {
		if len(c.args) == 0 && g.ActiveState == "failed" {
			chosen = append(chosen, g)
		}
	}
	return c.quietly(true).do(ctx, client, "reset-failed", chosen, true)
}

func (c *systemctl) isSystemRunning(ctx context.Context) error {
	client := c.client()
	defer client.Close()
	state := "offline"
	if groups, err := client.Groups(ctx); err == nil {
		state = systemState(groups)
	}
	if !c.file.quiet {
		fmt.Fprintln(c.Out, state)
	}
	if state != "running" {
		return &Exit{Status: exitFailure}
	}
	return nil
}

func (c *systemctl) reloadManager(ctx context.Context) error {
	client := c.client()
	defer client.Close()
	res, err := client.Reload(ctx)
	for _, w := range res.Circles {
		fmt.Fprintln(c.Err, place(w))
	}
	return c.offline(err)
}

// defaultTarget is get-default and set-default: the link default.target.
func (c *systemctl) defaultTarget(ctx context.Context, verb string) error {
	t := c.tree(ctx, &c.file)
	if verb == "get-default" {
		u, err := t.Find("default.target")
		name := "multi-user.target"
		if err == nil {
			name = u.Name
			if u.Alias {
				if to, err := os.Readlink(t.File(u.Path)); err == nil {
					name = to[strings.LastIndexByte(to, '/')+1:]
				}
			}
		}
		_, err = fmt.Fprintln(c.Out, name)
		return err
	}
	if len(c.args) != 1 {
		return tooFew()
	}
	names, err := mangled(c.args)
	if err != nil {
		return err
	}
	changes, err := t.SetDefault(names[0])
	if err != nil {
		return failedTo("set default target", err)
	}
	for _, change := range changes {
		if !c.file.quiet {
			fmt.Fprintln(c.Err, change)
		}
	}
	return nil
}
