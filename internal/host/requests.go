package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/journal"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/store"
)

// The requests of the API. Each runs in the loop; those that wait for a job
// leave the loop meanwhile.

func failure(code, hint, format string, args ...any) *hostapi.Error {
	return &hostapi.Error{Code: code, Hint: hint, Message: fmt.Sprintf(format, args...)}
}

func unknown(name string) *hostapi.Error {
	return failure("not-found", "legion status lists what is there; unit files are read again by legion reload", "there is no group %s on this host", name)
}

// Info describes the host.
func (h *Host) Info(ctx context.Context) (hostapi.Info, error) {
	var v hostapi.Info
	err := h.do(ctx, func() {
		mode, reason := h.o.Cgroups.Mode()
		v = hostapi.Info{
			Version: h.o.Version, PID: os.Getpid(), BootID: h.o.BootID, StartedAt: h.started, Cgroup: mode, CgroupReason: reason,
			StateDir: h.o.StateDir, UnitPath: h.o.Units.Path(), Problems: slices.Concat(h.problems, h.relations().problems, h.o.Logs.Problems()),
		}
	})
	return v, err
}

// Groups lists all groups by name.
func (h *Host) Groups(ctx context.Context) ([]hostapi.Group, error) {
	list := []hostapi.Group{}
	err := h.do(ctx, func() {
		for _, g := range h.inOrder() {
			list = append(list, h.wire(g))
		}
	})
	return list, err
}

// Group gives one group. One whose unit file nobody has read yet (an instance of
// a template, a file that came a moment ago) is given as it would be: down.
func (h *Host) Group(ctx context.Context, name string) (hostapi.Group, error) {
	var v hostapi.Group
	var missing error
	err := h.do(ctx, func() {
		g := h.find(name)
		if g == nil {
			missing = unknown(name)
			return
		}
		v = h.wire(g)
	})
	if err == nil && missing != nil {
		if spec, absent := h.o.Units.Find(name); absent == nil { // the disk is not read in the loop
			missing = nil
			err = h.do(ctx, func() { v = h.wire(newGroup(spec, time.Now())) })
		}
	}
	return v, firstOf(err, missing)
}

// Put defines a group, keeps it on disk and starts it if it is for boot.
func (h *Host) Put(ctx context.Context, spec service.Group, by string) (hostapi.Group, error) {
	var v hostapi.Group
	var refused error
	err := h.do(ctx, func() {
		if refused = h.put(spec, by); refused == nil {
			v = h.wire(h.groups[spec.Name])
		}
	})
	if err == nil {
		err = refused
	}
	return v, err
}

func (h *Host) put(spec service.Group, by string) error {
	if err := valid(&spec); err != nil {
		return err
	}
	g := h.groups[spec.Name]
	if g != nil {
		spec = g.withEphemeral(spec)
	}
	switch {
	case g != nil && g.unit:
		return failure("conflict", "edit that file and reload, or choose another name", "%s is defined by %s", spec.Name, sentence(g.spec.Source.Files))
	case g != nil && g.deleting:
		return failure("conflict", "wait until it is gone (watch), then put it again", "%s is being deleted", spec.Name)
	case g != nil && reflect.DeepEqual(g.spec, spec):
		return nil
	case g != nil && !g.idle() && !sameServices(g.spec, spec):
		return failure("conflict", "stop or delete it first", "%s runs with other services than these", spec.Name)
	case h.closing():
		return failure("conflict", "", "legiond is stopping everything, so it takes no new group")
	}
	if err := h.o.Store.Save(store.Groups, spec.Name, spec); err != nil {
		return failure("failed", "check that the disk of the state directory is neither full nor read-only", "%v", err)
	}
	if g == nil {
		g = newGroup(spec, time.Now())
		h.groups[spec.Name] = g
		h.graph = nil
		if spec.Boot {
			h.startNew(g, by)
		}
	} else {
		g.define(spec, time.Now())
		h.graph = nil
		if spec.Boot && !g.alive() && g.job == nil && !g.wanted {
			h.startNew(g, by)
		}
	}
	h.dirty[spec.Name] = struct{}{}
	return nil
}

// startNew starts a group that was put, because it is for boot.
func (h *Host) startNew(g *group, by string) {
	h.request(startJob, g.spec.Name, job{by: by}, func(outcome) {})
}

// sameServices leaves out those that may be added at any time.
func sameServices(a, b service.Group) bool {
	return slices.EqualFunc(lasting(a.Services), lasting(b.Services), func(x, y service.Service) bool { return x.Name == y.Name })
}

func valid(g *service.Group) error {
	if g.Name == "" || strings.ContainsAny(g.Name, "/\x00\n") || g.Name == "." || g.Name == ".." || len(g.Name) > 200 {
		return failure("invalid", "", "%q cannot be the name of a group: it must be 1 to 200 bytes without / and not . or ..", g.Name)
	}
	seen := map[string]bool{}
	for _, s := range g.Services {
		switch {
		case s.Name == "" || strings.ContainsAny(s.Name, "/\x00\n") || s.Name == "." || s.Name == "..":
			return failure("invalid", "", "%s: %q cannot be the name of a service", g.Name, s.Name)
		case seen[s.Name]:
			return failure("invalid", "", "%s: two services are named %s", g.Name, s.Name)
		case len(s.Start) == 0 && s.Type != service.Oneshot:
			return failure("invalid", "give it a start command", "%s: service %s has nothing to start", g.Name, s.Name)
		case len(s.Start) > 1 && s.Type != service.Oneshot:
			return failure("invalid", "only a oneshot service may have several", "%s: service %s has %d start commands", g.Name, s.Name, len(s.Start))
		}
		seen[s.Name] = true
	}
	return nil
}

// Delete stops a group that was put and forgets it; it does not wait.
func (h *Host) Delete(ctx context.Context, name, by string, grace *time.Duration) error {
	var refused error
	err := h.do(ctx, func() {
		g := h.groups[name]
		switch {
		case g == nil:
			refused = unknown(name)
			return
		case g.unit:
			refused = failure("conflict", "remove that file and reload", "%s is defined by %s", name, sentence(g.spec.Source.Files))
			return
		}
		g.deleting = true
		if err := h.o.Store.Save(store.Wishes, name, wish{By: by, Deleting: true}); err != nil {
			h.note(g, "cannot write that it is being deleted", err)
		}
		h.request(stopJob, name, job{by: by, grace: grace}, func(outcome) {})
		h.dirty[name] = struct{}{}
	})
	if err == nil {
		err = refused
	}
	return err
}

// forget removes a group that has stopped.
func (h *Host) forget(g *group) {
	name := g.spec.Name
	if h.groups[name] != g {
		return
	}
	last := h.wire(g)
	delete(h.groups, name)
	h.graph = nil
	h.orphaned(g)
	h.release(g)
	for _, u := range g.services {
		h.dropFiles(u, "")
		u.hangUp()
		if err := h.o.Cgroups.Remove(u.cgroup); err != nil {
			h.o.Log.Error("cannot remove the cgroup", "group", name, "error", err)
		}
		h.o.Logs.Detach(name, u.spec.Name)
	}
	if err := h.o.Cgroups.Remove(name); err != nil {
		h.o.Log.Error("cannot remove the cgroup", "group", name, "error", err)
	}
	if !g.unit {
		if err := h.o.Logs.Remove(name); err != nil {
			h.problems = append(h.problems, service.Warning{Text: err.Error()})
		}
	}
	// The definition goes when all else has gone: what it says is done again by a
	// legiond that takes over before.
	for _, k := range []store.Kind{store.Groups, store.Wishes, store.Runs} {
		if err := h.o.Store.Delete(k, name); err != nil {
			h.problems = append(h.problems, service.Warning{Text: err.Error()})
		}
	}
	h.publish(hostapi.Event{Type: hostapi.Removed, Name: name, Group: &last})
}

// Do carries out the verb (start, stop, restart, reload, reset-failed) and,
// where wait is set, returns when it is done or has failed.
func (h *Host) Do(ctx context.Context, name, verb, by string, wait bool, grace *time.Duration) (hostapi.Result, error) {
	return h.doVerb(ctx, name, verb, job{by: by, grace: grace}, wait)
}

// doVerb is Do with all that a job may be told.
func (h *Host) doVerb(ctx context.Context, name, verb string, template job, wait bool) (hostapi.Result, error) {
	done := make(chan outcome, 1)
	var res hostapi.Result
	var refused error
	if err := h.load1(ctx, name, verb); err != nil {
		return res, err
	}
	err := h.do(ctx, func() {
		g := h.find(name)
		if g == nil {
			refused = unknown(name)
			return
		}
		refused = h.verb(g, verb, template, func(o outcome) { done <- o })
	})
	if err != nil || refused != nil {
		return res, firstOf(err, refused)
	}
	if !wait {
		select {
		case o := <-done:
			return result(name, verb, o)
		default:
			return hostapi.Result{Changed: true, Message: verb + " is under way"}, nil
		}
	}
	select {
	case o := <-done:
		return result(name, verb, o)
	case <-ctx.Done():
		return res, failure("timeout", "it goes on; legion explain tells what it waits for", "stopped waiting for the %s of %s", verb, name)
	case <-h.ctx.Done():
		return res, failure("failed", "", "legiond ended before the %s of %s was done", verb, name)
	}
}

// load1 reads the unit file of a group that is to start, or to be down, and was
// not read yet: an instance of a template, a file that came a moment ago. The
// disk is not read in the loop.
func (h *Host) load1(ctx context.Context, name, verb string) error {
	if verb != "start" && verb != "restart" && verb != "stop" {
		return nil
	}
	missing := false
	if err := h.do(ctx, func() { missing = h.find(name) == nil }); err != nil || !missing {
		return err
	}
	spec, err := h.o.Units.Find(name)
	if err != nil {
		if strings.Contains(name, "@") {
			return failure("not-found", "legion status lists what is there", "%v", err)
		}
		return nil // the loop says so
	}
	return h.do(ctx, func() { h.take(spec) })
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func result(name, verb string, o outcome) (hostapi.Result, error) {
	if o.failure != "" {
		return hostapi.Result{}, failure("failed", "legion logs "+name+" shows what it wrote; legion explain "+name+" the whole story", "%s", undone(verb, name, o.failure))
	}
	return hostapi.Result{Changed: o.changed, Message: o.message}, nil
}

func (h *Host) verb(g *group, verb string, template job, done func(outcome)) error {
	name, by := g.spec.Name, template.by
	switch verb {
	case "start", "stop", "restart", "reload", "reset-failed":
	default:
		return failure("invalid", "the verbs are start, stop, restart, reload and reset-failed", "%q cannot be done to a group", verb)
	}
	switch {
	case verb == "start" && g.spec.RefuseManualStart, verb == "restart" && g.spec.RefuseManualStart:
		return failure("denied", "start what depends on it", "%s may only be started as a dependency (RefuseManualStart=)", name)
	case verb == "stop" && g.spec.RefuseManualStop, verb == "restart" && g.spec.RefuseManualStop:
		return failure("denied", "", "%s may not be stopped by hand (RefuseManualStop=)", name)
	case g.deleting && verb != "stop":
		return failure("conflict", "", "%s is being deleted", name)
	case h.closing() && verb != "stop":
		return failure("conflict", "", "legiond is stopping everything")
	case template.mode != "" && !slices.Contains(service.JobModes, template.mode):
		return failure("invalid", "", "%q is no mode of a job", template.mode)
	case verb == "start" && g.job == nil && g.active() && template.mode != service.JobIsolate:
		if !g.wanted {
			h.want(g, true, by)
		}
		done(outcome{message: name + " is active already"})
	case verb == "stop" && g.job == nil && g.idle():
		if g.wanted {
			h.want(g, false, by)
		}
		done(outcome{message: name + " is not active"})
	case verb == "reload" && !g.active():
		return failure("conflict", "start it first", "cannot reload %s: it is not active", name)
	case verb == "reload" && !g.canReload() && len(h.relations().Reloads(name)) == 0:
		return failure("invalid", "restart it instead", "cannot reload %s: it has no ExecReload= and is not Type=notify-reload", name)
	case verb == "reset-failed":
		h.stepAll(g, machine.Event{Kind: machine.ResetAsked, By: by})
		done(outcome{changed: true})
	default:
		h.request(jobKind(verb), g.spec.Name, template, done)
	}
	return nil
}

// Logs writes what the group's services have written.
func (h *Host) Logs(ctx context.Context, name string, q hostapi.LogQuery, w io.Writer) error {
	g, err := h.Group(ctx, name)
	if name == hostapi.Outside {
		g.Spec, err = service.Group{Name: name, Services: []service.Service{{Name: name}}}, nil
	}
	if err != nil {
		return err
	}
	services := g.Spec.Services
	if q.Service == "" && len(services) == 1 {
		q.Service = services[0].Name
	}
	if q.Service != "" && !slices.ContainsFunc(services, func(s service.Service) bool { return s.Name == q.Service }) {
		return failure("not-found", "", "%s has no service %s", name, q.Service)
	}
	err = h.o.Logs.Read(ctx, g.Spec.Name, q.Service, q, w)
	if errors.Is(err, journal.ErrNotFound) {
		return failure("not-found", "", "%v", err)
	}
	return err
}

// Poweroff stops every group in reverse order, and then ends Run.
func (h *Host) Poweroff(ctx context.Context, by string) (hostapi.Result, error) {
	return h.endWith(ctx, func() error { h.end(by); return nil })
}

// endWith waits for the end that f, in the loop, has brought about.
func (h *Host) endWith(ctx context.Context, f func() error) (hostapi.Result, error) {
	var down chan struct{}
	var refused error
	if err := h.do(ctx, func() { refused = f(); down = h.ending }); err != nil || refused != nil {
		return hostapi.Result{}, firstOf(err, refused)
	}
	select {
	case <-down:
		return hostapi.Result{Changed: true, Message: "everything is stopped"}, nil
	case <-ctx.Done():
		return hostapi.Result{}, failure("timeout", "it goes on", "stopped waiting for everything to stop")
	}
}

// end asks for the stop of everything; the channel is closed when all is down.
func (h *Host) end(by string) chan struct{} {
	if h.ending != nil {
		return h.ending
	}
	h.ending = make(chan struct{})
	for _, g := range h.inOrder() {
		if !g.idle() || g.job != nil {
			h.install(g, &job{kind: stopJob, by: by}, nil)
		}
	}
	return h.ending
}

// endIfDown ends the loop once nothing runs and nothing is under way. The
// records say that this life is over, so that the next legiond boots.
func (h *Host) endIfDown() {
	if h.ending == nil || h.ended {
		return
	}
	for _, g := range h.groups {
		if g.job != nil || !g.idle() {
			return
		}
	}
	h.over()
}

// over ends the loop, and with it this life.
func (h *Host) over() {
	h.o.BootID = ""
	for _, g := range h.groups {
		h.save(g)
	}
	h.sync()
	h.ended = true
	close(h.ending)
}

// Reload reads the unit files again.
func (h *Host) Reload(ctx context.Context) (hostapi.ReloadResult, error) {
	var res hostapi.ReloadResult
	units, problems := h.o.Units.Load()
	err := h.do(ctx, func() { res = h.redefine(units, problems) })
	return res, err
}

func (h *Host) redefine(units []service.Group, problems []service.Warning) hostapi.ReloadResult {
	res := hostapi.ReloadResult{Errors: problems}
	h.problems = slices.Concat(h.o.Problems, problems)
	h.graph = nil
	seen := map[string]bool{}
	for _, spec := range units {
		seen[spec.Name] = true
		g := h.groups[spec.Name]
		switch {
		case g == nil:
			g = newGroup(spec, time.Now())
			g.unit = true
			h.groups[spec.Name] = g
			res.Added = append(res.Added, spec.Name)
		case !g.unit:
			h.problems = append(h.problems, service.Warning{Text: fmt.Sprintf("%s was put by request; the unit file of that name does not count until it is deleted", spec.Name)})
			continue
		case g.gone:
			g.gone = false
			g.define(spec, time.Now())
			res.Added = append(res.Added, spec.Name)
		case !reflect.DeepEqual(g.spec, spec):
			h.redefineGroup(g, spec)
			if g.timer != nil {
				h.planTimer(g)
			}
			g.gotCommands()
			res.Changed = append(res.Changed, spec.Name)
		default:
			continue
		}
		h.dirty[spec.Name] = struct{}{}
	}
	for _, g := range h.inOrder() {
		if g.unit && g.demanded && !seen[g.spec.Name] {
			if spec, err := h.o.Units.Find(g.spec.Name); err == nil {
				if !reflect.DeepEqual(g.spec, spec) {
					h.redefineGroup(g, spec)
					res.Changed = append(res.Changed, spec.Name)
					h.dirty[spec.Name] = struct{}{}
				}
				continue
			}
		}
		if g.unit && !g.gone && !seen[g.spec.Name] {
			g.gone = true
			if g.spec.Trigger() { // it starts nothing any more
				g.up = false
				h.lower(g)
			}
			h.dirty[g.spec.Name] = struct{}{}
			res.Removed = append(res.Removed, g.spec.Name)
			if g.job == nil && g.idle() {
				h.forget(g) // its orders count no more
			}
		}
	}
	h.graph = nil // where somebody has asked for it before all was read
	res.Circles = h.relations().problems
	res.Errors = slices.Concat(problems, res.Circles)
	return res
}

// undone says what could not be done to a group, with the group's name once.
func undone(verb, name, why string) string {
	why = strings.TrimPrefix(why, name+": ")
	if what := "cannot " + verb + " " + name; !strings.HasPrefix(why, what) {
		return what + ": " + why
	}
	return why
}
