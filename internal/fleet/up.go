package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/netns"
	"legion.dev/legion/internal/service"
)

// UpOptions is what `legion up` asks for.
type UpOptions struct {
	// Nodes is how many local nodes there shall be at least; 0 is a control
	// plane alone.
	Nodes int
	// Port of the API; 0 is the one it had, else 6443, else a free one.
	Port int
	// Apply are manifests to apply when the server is ready.
	Apply []string
	// Timeout bounds the wait for one stage; 0 is two minutes.
	Timeout time.Duration
}

// Up starts the fleet, or what of it is missing, and returns when all of it is
// ready. It may be called again at any time: after success, after a failure, and
// after a reboot of the machine.
func (f *Fleet) Up(ctx context.Context, o UpOptions) error {
	if o.Nodes < 0 {
		return fmt.Errorf("cannot start %d nodes", o.Nodes)
	}
	if err := f.programsPresent(o.Nodes > 0); err != nil {
		return err
	}
	if err := f.makeDir(); err != nil {
		return err
	}
	unlock, err := f.lock("up")
	if err != nil {
		return err
	}
	defer unlock()
	if err := f.open(); err != nil {
		return err
	}
	running := f.hostAnswers(ctx)
	if running && !f.exists() {
		return fmt.Errorf("cannot start a fleet in %s: a legiond that is not a fleet's uses this directory; name another with --dir", f.Dir)
	}
	had := len(f.state.Nodes)
	if err := f.plan(o, running); err != nil {
		return err
	}
	if err := f.makeNetwork(); err != nil {
		return err
	}
	f.explainSharedNetwork()
	if err := f.save(); err != nil {
		return fmt.Errorf("cannot keep what the fleet is made of: %w", err)
	}
	if err := f.writeUnits(); err != nil {
		return err
	}
	if running {
		f.Progress.Say("The fleet in %s is already up (%d nodes); looking after what is missing.", f.Dir, had)
	}
	if err := f.bringUp(ctx, o, running); err != nil {
		return f.interrupted(ctx, err)
	}
	return nil
}

// bringUp starts everything and waits for it, in the order in which one thing
// needs the other; what does not is started together.
func (f *Fleet) bringUp(ctx context.Context, o UpOptions, running bool) error {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = 2 * time.Minute
	}
	if !running {
		f.Progress.Step("starting legiond")
		if err := f.within(ctx, timeout, f.startHost); err != nil {
			return err
		}
	} else if err := f.reload(ctx); err != nil {
		return err
	}
	first := []string{serverUnit}
	if f.hasCollector() {
		first = append(first, collectorUnit)
	}
	for _, n := range f.state.Nodes {
		first = append(first, hostUnit(n.Name))
	}
	f.Progress.Step("starting the control plane")
	if err := f.within(ctx, timeout, func(ctx context.Context) error { return f.start(ctx, first) }); err != nil {
		return err
	}
	client, err := openAPI(f.Kubeconfig())
	if err != nil {
		return err
	}
	applied := make(chan error, 1)
	go func() { applied <- f.apply(ctx, o.Apply) }()
	err = f.within(ctx, timeout, func(ctx context.Context) error { return f.joinNodes(ctx, client, f.state.Nodes) })
	if e := <-applied; err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return f.within(ctx, timeout, func(ctx context.Context) error { return f.waitDaemonSets(ctx, client) })
}

// within bounds one stage.
func (f *Fleet) within(ctx context.Context, timeout time.Duration, stage func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %s", timeout))
	defer cancel()
	return stage(ctx)
}

// interrupted adds to an error what is left running, and how to go on.
func (f *Fleet) interrupted(ctx context.Context, err error) error {
	hint := fmt.Sprintf("What was started runs on; `legion up --dir %s` goes on, `legion down --dir %[1]s` removes it.", f.Dir)
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted. %s", hint)
	}
	return fmt.Errorf("%w\n%s", err, hint)
}

// programsPresent checks that what the units will run is there.
func (f *Fleet) programsPresent(nodes bool) error {
	names := []string{"legion", "legiond", "legion-server"}
	if nodes {
		names = append(names, "legion-agent")
	}
	var missing []string
	for _, name := range names {
		if err := unix.Access(f.program(name), unix.X_OK); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("cannot start a fleet: %s not found beside legion in %s; `make build` builds them", strings.Join(missing, ", "), f.Bin)
	}
	return nil
}

// plan decides what the fleet is made of: what it was, and what is asked for on
// top of it. Nodes are never removed here.
func (f *Fleet) plan(o UpOptions, running bool) error {
	fresh := !f.exists()
	for i := 1; len(f.state.Nodes) < o.Nodes; i++ {
		name := "n" + strconv.Itoa(i)
		if _, ok := f.node(name); ok {
			continue
		}
		if _, err := f.addNode(name); err != nil {
			return err
		}
	}
	if running {
		if o.Port != 0 && o.Port != f.state.Port {
			return fmt.Errorf("cannot move the fleet in %s to port %d while it runs on port %d; `legion down --dir %[1]s` first", f.Dir, o.Port, f.state.Port)
		}
		return nil
	}
	if err := f.choosePort(o.Port); err != nil {
		return err
	}
	// What an earlier legiond left running is found in the cgroup it had.
	if _, err := os.Stat(f.state.Cgroup); f.state.Cgroup == "" || err != nil {
		f.state.Cgroup = f.chooseCgroup()
	}
	if !fresh {
		return nil
	}
	if f.Root {
		subnet, err := netns.Choose(f.id())
		f.state.Subnet, f.state.Namespaced = subnet, true
		return err
	}
	return f.chooseLoopback()
}

// chooseLoopback finds a part of the loopback network that no other fleet of
// this machine has taken, which shows by its collector.
func (f *Fleet) chooseLoopback() error {
	for i := range 256 {
		f.state.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 77, byte(i), 0}), 24)
		l, err := net.Listen("tcp", netip.AddrPortFrom(f.centre(), collectorPort).String())
		if err == nil {
			return l.Close()
		}
	}
	return fmt.Errorf("cannot find addresses for the nodes: port %d is in use on each of 127.77.0.1 to 127.77.255.1", collectorPort)
}

// choosePort takes the port asked for, or the one the fleet had, or 6443, or any.
func (f *Fleet) choosePort(asked int) error {
	if asked != 0 {
		f.state.Port = asked
	}
	if f.state.Port != 0 {
		return f.portFree(f.state.Port)
	}
	for _, port := range []int{6443, 0} {
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		f.state.Port = l.Addr().(*net.TCPAddr).Port
		return l.Close()
	}
	return errors.New("cannot find a free port for the API on 127.0.0.1")
}

// portFree says who has the port, unless it is this fleet's own server, left
// behind by a legiond that died: the next legiond adopts it.
func (f *Fleet) portFree(port int) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err == nil {
		return l.Close()
	}
	by := ""
	if p, ok := listener(port); ok {
		for _, own := range f.processes() {
			if own.PID == p.PID {
				return nil
			}
		}
		by = " by " + p.String()
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("cannot use port %d for the API: %w; choose another with --port", port, err)
	}
	return fmt.Errorf("cannot use port %d for the API: it is in use%s; choose another with --port", port, by)
}

// makeNetwork gives each node its namespace. Where even root may not (a
// container without the privilege), a new fleet shares the host's network.
func (f *Fleet) makeNetwork() error {
	if !f.state.Namespaced {
		return nil
	}
	if !f.Root {
		return fmt.Errorf("cannot start the fleet in %s: it was made by root, with a network for each node; run this as root", f.Dir)
	}
	n := f.network()
	if err := n.EnsureHub(); err != nil {
		if errors.Is(err, unix.EPERM) && !f.exists() {
			f.Progress.Say("No network of their own for the nodes: %v", err)
			f.state.Namespaced = false
			return f.chooseLoopback()
		}
		return err
	}
	for _, node := range f.state.Nodes {
		if err := n.EnsureNode(node.Name, node.Index); err != nil {
			return err
		}
	}
	return nil
}

func (f *Fleet) explainSharedNetwork() {
	if !f.state.Namespaced && !f.Root && len(f.state.Nodes) > 0 {
		f.Progress.Say("The nodes share this machine's network and have addresses in %s; as root, each has a network of its own.", f.state.Subnet)
	}
}

// hostAnswers: the fleet's legiond runs.
func (f *Fleet) hostAnswers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := hostclient.New(f.socket()).Info(ctx)
	return err == nil
}

// reload makes the running legiond read the unit files again.
func (f *Fleet) reload(ctx context.Context) error {
	result, err := hostclient.New(f.socket()).Reload(ctx)
	if err != nil {
		return fmt.Errorf("cannot make legiond read the units: %w", err)
	}
	for _, w := range result.Errors {
		f.Progress.Say("%s:%d: %s", w.File, w.Line, w.Text)
	}
	return nil
}

// start asks for units and waits until each runs and is ready.
func (f *Fleet) start(ctx context.Context, units []string) error {
	host := hostclient.New(f.socket())
	for _, u := range units {
		if _, err := host.Do(ctx, u, "start", false); err != nil {
			return fmt.Errorf("cannot start %s: %w", u, err)
		}
	}
	missing := map[string]bool{}
	for _, u := range units {
		missing[u] = true
	}
	last := map[string]string{}
	err := host.Watch(ctx, func(ev hostapi.Event) error {
		if ev.Group == nil || len(ev.Group.Status.Services) == 0 {
			return nil
		}
		s := ev.Group.Status.Services[0]
		last[ev.Name] = fmt.Sprintf("%s is %s: %s", ev.Name, ev.Group.ActiveState, s.Reason)
		if s.State == service.Running && s.Ready {
			delete(missing, ev.Name)
		}
		if missing[ev.Name] && s.State == service.Failed {
			return fmt.Errorf("%s\nSee `legion logs -H %s %s`", last[ev.Name], f.socket(), ev.Name)
		}
		if len(missing) == 0 {
			return errDone
		}
		return nil
	})
	if errors.Is(err, errDone) {
		return nil
	}
	if ctx.Err() != nil {
		var words []string
		for u := range missing {
			words = append(words, last[u])
		}
		return fmt.Errorf("the fleet has not started: %w: %s\nSee `legion logs -H %s UNIT`", context.Cause(ctx), strings.Join(words, "; "), f.socket())
	}
	return err
}

// errDone ends a watch that has seen what it waited for.
var errDone = errors.New("done")

// apply applies manifests with the built-in kubectl.
func (f *Fleet) apply(ctx context.Context, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	args := []string{"kubectl", "apply", "--server-side", "--field-manager=legion-up"}
	for _, p := range paths {
		args = append(args, "-f", p)
	}
	cmd := exec.CommandContext(ctx, f.program("legion-server"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+f.Kubeconfig())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot apply %s: %w\n%s", strings.Join(paths, ", "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// listener finds the process that listens on a TCP port of this machine.
func listener(port int) (process, bool) {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, _ := os.ReadFile(table)
		for line := range strings.Lines(string(data)) {
			// sl local_address rem_address st … inode; 0A is LISTEN (proc(5))
			fields := strings.Fields(line)
			if len(fields) > 9 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
				inodes["socket:["+fields[9]+"]"] = true
			}
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil || !inodes[target] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return process{pid, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))}, true
	}
	return process{}, false
}
