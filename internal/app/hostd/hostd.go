// Package hostd assembles legiond: it opens what the loop needs, in the order
// in which it is needed, and closes it in the reverse one.
package hostd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	_ "time/tzdata" // containers often have no database of time zones

	"legion.dev/legion/internal/app"
	"legion.dev/legion/internal/bus"
	"legion.dev/legion/internal/cgroup"
	"legion.dev/legion/internal/clock"
	"legion.dev/legion/internal/footprint"
	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/journal"
	"legion.dev/legion/internal/listen"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/pathwatch"
	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/store"
	"legion.dev/legion/internal/unitdir"
)

// Options are legiond's flags.
type Options struct {
	Dir string
	// Units is the unit path; empty is the distribution's as root, and
	// Dir/units.
	Units []string
	// Initd is a directory of init.d scripts, which become units where no unit
	// file has their name; empty is /etc/init.d with the distribution's unit
	// path, else none.
	Initd string
	// Socket is where the API listens; empty is Dir/host.sock.
	Socket string
	// Cgroup is the absolute directory of legiond's own cgroup; empty is one
	// below the cgroup that legiond was started in, "none" is none.
	Cgroup string
	// Boot is the target to start, "all" for every unit with WantedBy=, or
	// "none". Empty is default.target as PID 1 and where Units is set, else
	// none: a second service manager must not boot a machine that is up.
	Boot string
	// Essential is the unit without which legiond has nothing to do: it is
	// started at boot, and when it has ended, legiond stops everything and
	// ends with its status (Exit).
	Essential string
	// StandIn: /run/systemd shows that legiond is in systemd's place. As PID 1
	// it always does, as far as /run can be written to.
	StandIn bool
	// Memory is where the state goes if legiond is PID 1 and Dir cannot be
	// written to; empty is /run/legion.
	Memory string
	// generate: the unit path has what generators write.
	generate bool
	// Point is host.Options.Point, for tests.
	Point func(what string)
}

func (o *Options) complete() error {
	if o.Dir == "" {
		return errors.New("--dir is empty: name the directory for state, logs and socket")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	if o.Memory == "" {
		o.Memory = "/run/legion"
	}
	if o.Dir, err = writable(dir, o.Memory); err != nil {
		return err
	}
	dir = o.Dir
	if o.Socket == "" {
		o.Socket = filepath.Join(dir, "host.sock")
	}
	if o.Boot == "" && len(o.Units) == 0 && os.Getpid() != 1 && !o.StandIn {
		o.Boot = "none"
	}
	if len(o.Units) == 0 {
		o.Units = []string{filepath.Join(dir, "units")}
		if os.Geteuid() == 0 {
			if o.Initd == "" {
				o.Initd = "/etc/init.d"
			}
			o.Units = append(o.Units, "/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
			if o.generate = o.StandIn || os.Getpid() == 1; o.generate {
				o.Units = slices.Insert(o.Units, 1, "/run/systemd/generator.early")
				o.Units = slices.Insert(o.Units, 4, "/run/systemd/generator")
				o.Units = append(o.Units, "/run/systemd/generator.late")
			}
		}
	}
	return nil
}

// Run is legiond from start to end; nil is a stop in good order.
func Run(ctx context.Context, o Options, log *slog.Logger) error {
	small()
	footprint.ReserveThreads()
	go roomForDescriptors()
	if os.Getpid() == 1 {
		mountMissing(log)
	}
	program, err := os.Readlink("/proc/self/exe") // before anything is put in its place
	if err != nil {
		return fmt.Errorf("cannot find legiond's own program: %w", err)
	}
	if err := o.complete(); err != nil {
		return err
	}
	for _, d := range []string{"", "state", "log", "run", "units"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, d), 0o755); err != nil {
			return fmt.Errorf("cannot make legiond's directory: %w", err)
		}
	}
	// The lock first: nothing of another legiond's may be touched.
	st, err := store.Open(filepath.Join(o.Dir, "state"))
	if err != nil {
		return err
	}
	defer st.Close()
	saved, problems := host.ReadSaved(st)

	bootID, err := bootID()
	if err != nil {
		return err
	}
	tree, err := openCgroup(o)
	if err != nil {
		return err
	}
	defer tree.Close()
	runner.SetInstance(o.Dir)
	procs, err := runner.New(runner.Options{HoldOrphans: true})
	if err != nil {
		return err
	}
	defer procs.Close()
	before, err := inherit()
	if err != nil {
		log.Error("goes on as after a crash", "error", err)
	}
	kept := findKept(o, procs, log)
	notes, err := before.notes(filepath.Join(o.Dir, "run", ".notify"), kept)
	if err != nil {
		return err
	}
	defer notes.Close()
	if o.StandIn || os.Getpid() == 1 {
		undo, err := standIn("/run", notes.Address())
		switch {
		case err == nil:
			defer undo()
		case o.StandIn:
			return err
		default:
			log.Warn("programs will not see that legiond is in systemd's place", "error", err)
		}
	}
	sayings := before.sayings(o, log)
	defer sayings.close()
	logs, err := journal.Open(filepath.Join(o.Dir, "log"), journal.Options{RunDir: filepath.Join(o.Dir, "run")})
	if err != nil {
		return err
	}
	defer logs.Close()
	events, err := openEvents(filepath.Join(o.Dir, "log", "events"))
	if err != nil {
		return err
	}
	defer events.close()

	watched, err := clock.Open()
	if err != nil {
		return err
	}
	defer watched.Close()
	sockets, err := listen.NewWatch()
	if err != nil {
		return err
	}
	defer sockets.Close()
	paths, err := pathwatch.New()
	if err != nil {
		return err
	}
	defer paths.Close()
	names := bus.New(bus.DefaultSocket)
	defer names.Close()
	var activator *bus.Activator
	if o.StandIn || os.Getpid() == 1 {
		activator = bus.NewActivator(bus.DefaultSocket, log)
		defer activator.Close()
	}

	if o.generate && os.Getpid() == 1 && before == nil {
		temporaryFiles(procs, log)
	}
	var made *generators
	if o.generate {
		made = &generators{from: generatorPath, to: "/run/systemd", procs: procs, log: log}
	}
	h := host.New(host.Options{
		Sockets: listening{sockets}, Paths: newPaths(paths), Names: newNames(names, activator), Syslog: sayings.port(), Clock: watched, Seed: seed(),
		Processes: newProcesses(procs), Cgroups: tracker{tree}, Logs: logs, Notes: newMessages(notes),
		Probes: prober{procs, logs, &sync.Map{}}, Units: units{o.Units, o.Boot, o.Initd, made, log, &sync.Map{}}, Store: st, Saved: saved, Events: events.add, Log: log,
		Version: app.Version, BootID: bootID, StateDir: filepath.Join(o.Dir, "state"), BootAll: o.Boot == "all", Problems: problems,
		Essential: o.Essential, Place: place(), Point: o.Point, Successor: successor{program, procs}.check, Keeper: kept.port(notes), Consoles: newConsoles(kept), Handover: before.handover(kept),
	})
	listener, err := before.listener(o.Socket)
	if err != nil {
		return err
	}
	err = serve(ctx, o, h, listener, log)
	if errors.Is(err, host.ErrReexec) {
		logs.Close()
		return succeed(program, h.Handover(), notes, listener, sayings)
	}
	if err != nil {
		return err
	}
	kept.end()
	if root := tree.Root(); root != "" {
		// Everything is down. What is not empty is left for the next legiond.
		_ = os.Remove(root)
	}
	if code, reason := h.ExitCode(); reason != "" {
		err = Exit{code, reason}
	}
	_ = st.Sync()
	endMachine(h.Ending(), log)
	return err
}

// serve runs the loop and the API side by side until everything is stopped.
func serve(ctx context.Context, o Options, h *host.Host, listener net.Listener, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler: h.Handler(), ConnContext: host.WithPeer, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	// The listener itself stays open for a successor.
	go func() { _ = server.Serve(&untilStopped{listener}) }()
	go signals(ctx, h, log, caught())
	go trimNowAndThen(ctx)
	go func() {
		select {
		case <-h.Ready():
		case <-ctx.Done():
			return
		}
		if _, err := notify.Send("READY=1"); err != nil {
			log.Error("cannot say that legiond is ready", "error", err)
		}
		log.Info("legiond is ready", "socket", o.Socket)
	}()
	err := h.Run(ctx)
	if errors.Is(err, host.ErrReexec) {
		grace, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		cancel() // what was asked too late is asked again of the next
		_ = server.Shutdown(grace)
		return err
	}
	_, _ = notify.Send("STOPPING=1") // whoever waits sees the exit, too
	// The answer to a poweroff is still on its way.
	grace, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	go func() { time.Sleep(50 * time.Millisecond); cancel() }()
	_ = server.Shutdown(grace)
	_ = os.Remove(o.Socket)
	return err
}

func listenOn(path string) (*net.UnixListener, error) {
	address, err := notify.Short(path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	// The lock is ours, so nobody listens on what an earlier legiond left.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	old := syscall.Umask(0o117)
	l, err := net.Listen("unix", address)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("cannot listen on %s: it is no unix socket", path)
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// caught are the signals that legiond heeds, from now on.
func caught() <-chan os.Signal {
	c := make(chan os.Signal, 4)
	// Container runtimes end an init by SIGTERM or, as systemd has it, by
	// SIGRTMIN+3; power supplies by SIGPWR.
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPWR, rtmin3)
	return c
}

func signals(ctx context.Context, h *host.Host, log *slog.Logger, c <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-c:
			if s == syscall.SIGHUP {
				res, err := h.Reload(ctx)
				log.Info("unit files read again", "added", len(res.Added), "changed", len(res.Changed), "removed", len(res.Removed), "problems", len(res.Errors), "error", err)
				continue
			}
			log.Info("stopping everything", "signal", s.String())
			go func() { _, _ = h.Poweroff(ctx, "legiond got "+s.String()) }()
		}
	}
}

// rtmin3 is SIGRTMIN+3 as the C library counts.
const rtmin3 = syscall.Signal(37)

// bootID names the life of the machine, and of the container where it is one:
// process IDs mean the same only within it.
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot read the boot ID: %w", err)
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return "", fmt.Errorf("cannot read the PID namespace: %w", err)
	}
	return strings.TrimSpace(string(data)) + " " + ns, nil
}

// seed is what tells this host from others, for what timers put off at random.
func seed() string {
	o := unitdir.ThisMachine()
	return o.MachineID + " " + o.Hostname
}

func openCgroup(o Options) (*cgroup.Tree, error) {
	switch o.Cgroup {
	case "none":
		return cgroup.Without("--cgroup=none was asked for"), nil
	case "":
	default:
		return cgroup.Open(o.Cgroup)
	}
	// The directory is kept beside the state: a legiond that is started again
	// from elsewhere must find the cgroups of the one before.
	file := filepath.Join(o.Dir, "state", "cgroup")
	if data, err := os.ReadFile(file); err == nil {
		if dir := strings.TrimSpace(string(data)); dir != "" {
			if _, err := os.Stat(dir); err == nil {
				return cgroup.Open(dir)
			}
		}
	}
	sum := sha256.Sum256([]byte(o.Dir))
	dir, err := cgroup.Default("legion-" + hex.EncodeToString(sum[:4]))
	if err != nil {
		return cgroup.Without(err.Error()), nil
	}
	t, err := cgroup.Open(dir)
	if err != nil {
		return nil, err
	}
	if mode, _ := t.Mode(); mode == cgroup.V2 {
		if err := os.WriteFile(file, []byte(dir+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("cannot write down which cgroup is legiond's: %w", err)
		}
	}
	return t, nil
}
