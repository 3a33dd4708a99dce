package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

// stopTimeout bounds the orderly stop of the whole fleet; what runs after it is
// killed.
const stopTimeout = 90 * time.Second

// Down stops the fleet and takes its network and cgroup away; the data stay
// unless purge. It is for a fleet in any state: running, half dead, or stopped.
func (f *Fleet) Down(ctx context.Context, purge bool) error {
	if !f.exists() {
		// Its files may be gone while it runs: it has the same names again.
		f.state.Cgroup = f.findCgroup()
		if len(f.left()) == 0 {
			f.Progress.Say("There is no fleet in %s; nothing to stop.", f.Dir)
			return nil
		}
	}
	unlock, err := f.lock("down")
	if err != nil {
		return err
	}
	defer unlock()
	if f.exists() {
		if err := f.open(); err != nil && !purge {
			return err
		}
	}
	before := len(f.processes())
	f.Progress.Step("stopping the fleet in %s", f.Dir)
	if err := f.powerOff(ctx); err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted; the fleet in %s is partly stopped: `legion down` goes on", f.Dir)
	}
	if err := f.endProcesses(ctx); err != nil {
		return err
	}
	if err := f.clean(); err != nil {
		return err
	}
	if left := f.left(); len(left) > 0 {
		return fmt.Errorf("the fleet in %s is stopped, but this is left of it:\n  %s", f.Dir, strings.Join(left, "\n  "))
	}
	if purge {
		if err := f.purge(); err != nil {
			return err
		}
		f.Progress.Say("Stopped (%s); %s is removed.", f.Progress.Elapsed(), f.Dir)
		return nil
	}
	if before == 0 {
		f.Progress.Say("The fleet in %s was not running; its data are kept (--purge removes them).", f.Dir)
		return nil
	}
	f.Progress.Say("Stopped (%s): no process, mount or network of it is left. Its data are kept in %s (--purge removes them).", f.Progress.Elapsed(), f.Dir)
	return nil
}

// powerOff asks the fleet's legiond to stop everything in its order. Where that
// one is gone, the nodes' are asked themselves.
func (f *Fleet) powerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if f.hostAnswers(ctx) {
		return f.powerOffHost(ctx, f.socket())
	}
	var errs []error
	for _, n := range f.state.Nodes {
		socket := f.path("nodes", n.Name, "host.sock")
		if _, err := hostclient.New(socket).Info(ctx); err == nil {
			errs = append(errs, f.powerOffHost(ctx, socket))
		}
	}
	return errors.Join(errs...)
}

func (f *Fleet) powerOffHost(ctx context.Context, socket string) error {
	host := hostclient.New(socket)
	info, err := host.Info(ctx)
	if err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go f.tellStops(watching, host)
	if _, err := host.Poweroff(ctx); err != nil {
		return err
	}
	return waitExit(ctx, info.PID)
}

// tellStops says what is still being waited for.
func (f *Fleet) tellStops(ctx context.Context, host *hostclient.Client) {
	alive := map[string]bool{}
	_ = host.Watch(ctx, func(ev hostapi.Event) error {
		if ev.Group == nil || len(ev.Group.Status.Services) == 0 {
			return nil
		}
		var s service.State
		for _, one := range ev.Group.Status.Services {
			if one.State.Alive() {
				s = one.State
			}
		}
		if s != "" {
			alive[ev.Name] = true
		} else {
			delete(alive, ev.Name)
		}
		var names []string
		for name := range alive {
			names = append(names, name)
		}
		if len(names) > 0 {
			f.Progress.Step("stopping: %s", few(names))
		}
		return nil
	})
}

// endProcesses ends what an orderly stop has left: first asked, then killed.
func (f *Fleet) endProcesses(ctx context.Context) error {
	none := func() bool { return len(f.processes()) == 0 }
	if none() {
		return nil
	}
	f.Progress.Step("ending processes that were left")
	for _, p := range f.processes() {
		_ = unix.Kill(p.PID, unix.SIGTERM)
	}
	patient, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if waitGone(patient, none) {
		return nil
	}
	if f.state.Cgroup != "" {
		_ = killCgroup(f.state.Cgroup)
	}
	for _, p := range f.processes() {
		f.Progress.Say("Killed %s, which did not end when asked.", p)
		_ = unix.Kill(p.PID, unix.SIGKILL)
	}
	last, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	waitGone(last, none)
	return nil
}

// clean takes away what a fleet has outside of its directory, and what cannot
// be used again inside.
func (f *Fleet) clean() error {
	var errs []error
	for _, m := range mountsBelow(f.Dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	if f.Root {
		errs = append(errs, f.network().Remove())
	}
	if f.state.Cgroup != "" {
		errs = append(errs, removeCgroup(f.state.Cgroup))
	}
	return errors.Join(errs...)
}

// left names what a stopped fleet must not have.
func (f *Fleet) left() []string {
	var left []string
	for _, p := range f.processes() {
		left = append(left, "process "+p.String())
	}
	for _, m := range mountsBelow(f.Dir) {
		left = append(left, "mount "+m)
	}
	left = append(left, f.network().Left()...)
	if f.state.Cgroup != "" {
		if _, err := os.Stat(f.state.Cgroup); err == nil {
			left = append(left, "cgroup "+f.state.Cgroup)
		}
	}
	return left
}

// purge removes what a fleet keeps in its directory, and the directory if
// nothing else is in it.
func (f *Fleet) purge() error {
	for _, name := range []string{"units", "nodes", "server", "collector", "state", "log", "run", "host.sock", "admin.kubeconfig", "legiond.log", "fleet.json", "lock"} {
		if err := os.RemoveAll(f.path(name)); err != nil {
			return fmt.Errorf("cannot remove the fleet's data: %w", err)
		}
	}
	if err := os.Remove(f.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("cannot remove the fleet's directory: %w", err)
	}
	return nil
}
