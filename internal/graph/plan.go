package graph

import (
	"fmt"
	"slices"
	"strings"
)

// Kind is what a step does.
type Kind string

// The kinds of step.
const (
	Start   Kind = "start"
	Stop    Kind = "stop"
	Restart Kind = "restart"
)

// Step is one action of a plan.
type Step struct {
	Group  string
	Kind   Kind
	Reason string
	// After are the groups of this plan whose steps must be done before.
	After []string
}

// Plan is a list of steps in an order in which they can be carried out; steps
// that do not wait for each other may go in parallel.
type Plan []Step

// Start plans the start of a group with all that it pulls in. active says
// which groups run or are about to.
func (g *Graph) Start(name string, active func(string) bool) (Plan, error) {
	return g.plan(name, Start, active)
}

// Restart plans a stop and start of a group and of the running groups that
// follow it.
func (g *Graph) Restart(name string, active func(string) bool) (Plan, error) {
	return g.plan(name, Restart, active)
}

// Stop plans the stop of a group and of the running groups that need it.
func (g *Graph) Stop(name string, active func(string) bool) (Plan, error) {
	return g.plan(name, Stop, active)
}

// StopAll plans the end of everything that runs.
func (g *Graph) StopAll(active func(string) bool) Plan {
	p := planner{g: g, active: active, steps: map[string]*Step{}}
	for _, n := range g.names {
		if active(n) {
			p.put(n, Stop, "everything stops")
		}
	}
	return p.sorted()
}

func (g *Graph) plan(name string, kind Kind, active func(string) bool) (Plan, error) {
	to, ok := g.Resolve(name)
	if !ok {
		return nil, fmt.Errorf("there is no unit %s", name)
	}
	p := planner{g: g, active: active, steps: map[string]*Step{}}
	if err := p.add(to, kind, "request"); err != nil {
		return nil, err
	}
	if err := p.consistent(0); err != nil {
		return nil, err
	}
	return p.sorted(), nil
}

type planner struct {
	g      *Graph
	active func(string) bool
	steps  map[string]*Step
	made   []string // in the order in which the steps were added
}

func (p *planner) put(name string, kind Kind, reason string) {
	p.steps[name] = &Step{Group: name, Kind: kind, Reason: reason}
	p.made = append(p.made, name)
}

// add makes a step and those that it brings with it.
func (p *planner) add(name string, kind Kind, reason string) error {
	if old := p.steps[name]; old != nil {
		if (old.Kind == Stop) != (kind == Stop) {
			return fmt.Errorf("cannot %s %s (%s): the same request would %s it (%s)", kind, name, reason, old.Kind, old.Reason)
		}
		return nil
	}
	p.put(name, kind, reason)
	if kind != Start {
		if err := p.dependents(name, kind); err != nil {
			return err
		}
	}
	if kind == Stop {
		return nil
	}
	return p.needs(name)
}

// dependents adds the running groups that follow a stop or a restart.
func (p *planner) dependents(name string, kind Kind) error {
	for _, d := range p.g.needed[name] {
		if !p.active(d.name) || kind == Restart && !d.restarts {
			continue
		}
		if err := p.add(d.name, kind, d.reason); err != nil {
			return err
		}
	}
	return nil
}

// needs adds what a start pulls in, and stops what is in its way.
func (p *planner) needs(name string) error {
	g := p.g
	for _, other := range g.conflicts[name] {
		if step := p.steps[other]; p.active(other) || step != nil {
			if err := p.add(other, Stop, "conflicts with "+name); err != nil {
				return err
			}
		}
	}
	for _, n := range g.known[name] {
		to, ok := g.Resolve(n)
		if !ok || !p.active(to) && p.steps[to] == nil {
			return fmt.Errorf("cannot start %s: it needs %s to be active already (Requisite=)", name, n)
		}
	}
	for _, to := range g.requires[name] {
		if !g.exists(to) {
			return fmt.Errorf("cannot start %s: it requires %s, which does not exist", name, to)
		}
		if g.inOneCircle(name, to) {
			return fmt.Errorf("cannot start %s with %s, which it requires: their order runs in a circle: %s", name, to, g.circle[name].text)
		}
		if p.active(to) {
			continue
		}
		if err := p.add(to, Start, "required by "+name); err != nil {
			return err
		}
	}
	for _, to := range g.wants[name] {
		if !p.active(to) {
			p.try(to, "wanted by "+name)
		}
	}
	return nil
}

// try adds a wish. One that cannot be met is dropped with what it brought.
func (p *planner) try(name, reason string) {
	mark := len(p.made)
	err := p.add(name, Start, reason)
	if err == nil {
		err = p.consistent(mark)
	}
	if err == nil {
		return
	}
	for _, n := range p.made[mark:] {
		delete(p.steps, n)
	}
	p.made = p.made[:mark]
}

// consistent makes sure that nothing starts whose requirement the same plan
// stops. What was made before from is known to be so, but for what is stopped
// since.
func (p *planner) consistent(from int) error {
	if slices.ContainsFunc(p.made[from:], func(n string) bool { return p.steps[n].Kind == Stop }) {
		from = 0
	}
	for _, name := range p.made[from:] {
		if p.steps[name].Kind == Stop {
			continue
		}
		for _, to := range p.g.requires[name] {
			if step := p.steps[to]; step != nil && step.Kind == Stop {
				return fmt.Errorf("cannot start %s: it requires %s, which the same request would stop (%s)", name, to, step.Reason)
			}
		}
	}
	return nil
}

// sorted orders the steps. Inside a circle of orderings the members keep the
// order of their names and do not wait for each other: each of them still runs.
func (p *planner) sorted() Plan {
	var out Plan
	state := map[string]int{} // 1: being placed, 2: placed
	var place func(string)
	place = func(name string) {
		if state[name] != 0 {
			return
		}
		state[name] = 1
		step := *p.steps[name]
		for _, n := range p.waits(name) {
			place(n)
			if state[n] == 2 {
				step.After = append(step.After, n)
			}
		}
		state[name] = 2
		out = append(out, step)
	}
	names := slices.Clone(p.made)
	slices.Sort(names)
	for _, n := range names {
		place(n)
	}
	return out
}

// waits lists the steps that come before a step: of two starts the one that
// is ordered first, of two stops the other one, and a stop before any start
// that it is ordered with or makes way for.
func (p *planner) waits(name string) []string {
	step := p.steps[name]
	var out []string
	for other, o := range p.steps {
		if other == name {
			continue
		}
		first, second := p.g.ordered(other, name), p.g.ordered(name, other)
		switch {
		case step.Kind == Stop && o.Kind == Stop:
			if second {
				out = append(out, other)
			}
		case step.Kind == Stop:
		case o.Kind == Stop:
			if first || second || strings.HasPrefix(o.Reason, "conflicts with ") && slices.Contains(p.g.conflicts[name], other) {
				out = append(out, other)
			}
		case first:
			out = append(out, other)
		}
	}
	slices.Sort(out)
	return out
}

// ordered says whether a starts before b; it is no order inside a circle.
func (g *Graph) ordered(a, b string) bool {
	return !g.inOneCircle(a, b) && slices.ContainsFunc(g.after[b], func(e edge) bool { return e.to == a })
}
