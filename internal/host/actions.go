package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/service"
)

// Place is what legiond is to the machine.
type Place string

// The places; the empty one is that of a service of another init.
const (
	OfMachine   Place = "machine"   // process 1 of a machine
	OfContainer Place = "container" // process 1 of a container
)

// Ending is what is to be done to the machine or the container after Run.
type Ending struct {
	// Action is empty, or a reboot, poweroff or halt.
	Action service.Action
	// Argument is for reboot(2).
	Argument string
}

// Immediate says whether nothing is to be done before it, not even a sync.
func (e Ending) Immediate() bool { return strings.HasSuffix(string(e.Action), "-immediate") }

// Kind is the action without how urgent it is.
func (e Ending) Kind() service.Action {
	kind, _, _ := strings.Cut(string(e.Action), "-")
	return service.Action(kind)
}

// Ending is how the machine is to end; call it after Run.
func (h *Host) Ending() Ending { return h.after }

// possible gives what an action is where legiond is, or why it is not done:
// process 1 of a machine that ends takes the machine with it, and a container
// whose process 1 ends is off.
func possible(a service.Action, at Place) (service.Action, error) {
	e := Ending{Action: a}
	force := ""
	if strings.HasSuffix(string(a), "-force") || e.Immediate() {
		force = "-force"
	}
	switch kind := e.Kind(); {
	case kind == service.ExitAction && at == OfMachine:
		return service.PowerOff + service.Action(force), nil
	case kind == service.ExitAction || at == OfMachine:
		return a, nil
	case at != OfContainer:
		return "", errors.New("legiond is not process 1 of the machine or a container, so another init has the say in that")
	case kind == service.Reboot:
		return a, nil
	}
	return service.ExitAction + service.Action(force), nil
}

// act carries out an action of a group; status is what legiond exits with, nil
// for the exit status of the group's main process.
func (h *Host) act(g *group, directive string, a service.Action, status *int, argument string) {
	if a == "" || a == service.NoAction || h.closing() {
		return
	}
	what := fmt.Sprintf("%s=%s is not carried out", directive, a)
	do, err := possible(a, h.o.Place)
	if err != nil {
		h.note(g, what, err)
		return
	}
	h.works(g, what)
	why := fmt.Sprintf("%s=%s of %s", directive, a, g.spec.Name)
	if do == a || h.o.Place == OfMachine {
		code := g.exitStatus()
		if status != nil {
			code = *status
		}
		h.conclude(do, code, argument, why)
		return
	}
	h.conclude(do, 0, argument, why) // the container is off
}

// exitStatus is that of the group's main process; 255 where it has none because
// the process was killed.
func (g *group) exitStatus() int {
	for _, u := range g.services {
		if n := u.in.Newest; n != nil && n.Exit != nil {
			if n.Exit.Signal != 0 || n.Exit.Unknown {
				return 255
			}
			return n.Exit.Code
		}
	}
	return 0
}

// conclude brings legiond to its end: in order, or by force.
func (h *Host) conclude(a service.Action, status int, argument, why string) {
	e := Ending{Action: a, Argument: argument}
	h.o.Log.Info("stopping everything", "reason", why, "then", a)
	if e.Kind() == service.ExitAction {
		h.exitCode, h.exitReason = status, why
	} else {
		h.after = e
	}
	switch {
	case h.ending != nil: // it only ends otherwise
	case e.Immediate():
		h.ending = make(chan struct{})
		h.over()
	case strings.HasSuffix(string(a), "-force"):
		h.ending = make(chan struct{})
		h.killAll()
		h.over()
	default:
		h.end(why)
	}
}

// killAll kills what runs, without a word to anybody.
func (h *Host) killAll() {
	const sigkill = 9
	for _, g := range h.inOrder() {
		for _, u := range g.services {
			e := machine.Signal{Number: sigkill, All: true}
			for _, p := range [...]*machine.Proc{u.in.Main, u.in.Control} {
				if p != nil && p.PID != 0 {
					e.PIDs = append(e.PIDs, p.PID)
				}
			}
			if u.in.State.Alive() || len(e.PIDs) > 0 {
				h.signal(u, e)
			}
		}
	}
}

// httpPoweroff ends everything, and then the machine as the query says:
// action=poweroff (also if empty), reboot, halt or exit, with -force or
// -immediate; status is what legiond exits with, argument is for reboot(2).
func (h *Host) httpPoweroff(r *http.Request) (any, error) {
	q := r.URL.Query()
	a := service.Action(q.Get("action"))
	if a == "" {
		return h.Poweroff(r.Context(), "poweroff, "+requester(r))
	}
	status, err := strconv.Atoi(cmp.Or(q.Get("status"), "0"))
	if kind := (Ending{Action: a}).Kind(); err != nil || status < 0 || status > 255 || !slices.Contains([]service.Action{service.ExitAction, service.PowerOff, service.Reboot, service.Halt}, kind) {
		return nil, failure("invalid", "", "action=%s with status=%s cannot be done", a, q.Get("status"))
	}
	return h.endWith(r.Context(), func() error {
		do, err := possible(a, h.o.Place)
		if err != nil {
			return failure("conflict", "legion poweroff stops all that legiond runs, and legiond", "cannot %s: %v", a, err)
		}
		h.conclude(do, status, q.Get("argument"), string(a)+", "+requester(r))
		return nil
	})
}

// startLimited is for a start that the start limit has refused.
func (h *Host) startLimited(g *group) {
	h.act(g, "StartLimitAction", g.spec.Actions.StartLimit, new(int), g.spec.Actions.RebootArgument)
}
