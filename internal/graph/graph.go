// Package graph knows how groups hang together: what a start or a stop brings
// with it and in which order, and where the order runs in a circle. Its rules
// are those of systemd.unit(5). It holds no state: what is active is asked of
// the caller.
package graph

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"legion.dev/legion/internal/service"
)

// Graph is a set of groups and what they say of each other. It does not change.
type Graph struct {
	// groups are the definitions; nil once the graph is made.
	groups map[string]*service.Group
	// known are the groups that there are, with those of Requisite=.
	known map[string][]string
	alias map[string]string
	names []string // sorted

	// after[a] are the groups that start before a and stop after it.
	after map[string][]edge
	// wants and requires include what other groups' [Install] asks for.
	wants, requires map[string][]string
	// reloads[a] are the groups that reload with a; users[a] those that want,
	// require or uphold it.
	reloads, users map[string][]string
	// needed[a] are the groups that go down with a, with the reason.
	needed map[string][]dependent
	// conflicts[a] are the groups that cannot run beside a, sorted.
	conflicts map[string][]string

	circle map[string]*circle
}

// edge is one ordering, and the line of text that asks for it.
type edge struct {
	to    string
	owner string // whose file says it
	text  string // "After=b.service"
}

type dependent struct {
	name, reason string
	// restarts: it also follows a restart.
	restarts bool
}

// New builds the graph. The problems are orderings that run in a circle; they
// harm nobody outside of the circle.
func New(groups []service.Group) (*Graph, []service.Warning) {
	g := &Graph{
		groups: map[string]*service.Group{}, known: map[string][]string{}, alias: map[string]string{},
		after: map[string][]edge{}, wants: map[string][]string{}, requires: map[string][]string{},
		reloads: map[string][]string{}, users: map[string][]string{},
		needed: map[string][]dependent{}, conflicts: map[string][]string{}, circle: map[string]*circle{},
	}
	for i := range groups {
		g.groups[groups[i].Name] = &groups[i]
		g.known[groups[i].Name] = groups[i].Deps.Requisite
		g.names = append(g.names, groups[i].Name)
	}
	sort.Strings(g.names)
	for _, name := range g.names {
		for _, a := range g.groups[name].Deps.Aliases {
			if _, taken := g.alias[a]; !taken && !g.exists(a) {
				g.alias[a] = name
			}
		}
	}
	for _, name := range g.names {
		g.pull(name)
		g.each(g.groups[name].Deps.Conflicts, name, func(to string) {
			g.conflicts[name] = append(g.conflicts[name], to)
			g.conflicts[to] = append(g.conflicts[to], name)
		})
	}
	for name, others := range g.conflicts {
		sort.Strings(others)
		g.conflicts[name] = slices.Compact(others)
	}
	for _, name := range g.names {
		g.order(name)
	}
	problems := g.findCircles()
	g.groups = nil
	return g, problems
}

func (g *Graph) exists(name string) bool {
	_, ok := g.known[name]
	return ok
}

// Resolve gives the name of the group that is meant by a name or an alias.
func (g *Graph) Resolve(name string) (string, bool) {
	if g.exists(name) {
		return name, true
	}
	to, ok := g.alias[name]
	return to, ok
}

// Reloads lists the groups that reload when the named one does.
func (g *Graph) Reloads(name string) []string { return g.reloads[name] }

// Users lists the groups that want, require or uphold the named one.
func (g *Graph) Users(name string) []string { return g.users[name] }

// Dependents lists the groups that require the named one, are bound to it, part
// of it, or stop with it.
func (g *Graph) Dependents(name string) []string {
	var out []string
	for _, d := range g.needed[name] {
		out = append(out, d.name)
	}
	return out
}

// Conflicts lists the groups that cannot run beside the named one, in the order
// of their names.
func (g *Graph) Conflicts(name string) []string { return g.conflicts[name] }

// each calls f for the groups in a list that exist.
func (g *Graph) each(list []string, self string, f func(name string)) {
	for _, n := range list {
		if to, ok := g.Resolve(n); ok && to != self {
			f(to)
		}
	}
}

func add(m map[string][]string, key, value string) {
	if !slices.Contains(m[key], value) {
		m[key] = append(m[key], value)
	}
}

// pull records what a group pulls in and what goes down with what.
func (g *Graph) pull(name string) {
	d := g.groups[name].Deps
	needs := func(list []string, reason string, restarts bool) {
		g.each(list, name, func(to string) {
			g.needed[to] = append(g.needed[to], dependent{name, reason + to, restarts})
		})
	}
	// Names that do not exist are kept: a start must fail by them.
	for _, r := range slices.Concat(d.Requires, d.BindsTo) {
		if to, ok := g.Resolve(r); ok {
			r = to
		}
		if r != name {
			add(g.requires, name, r)
		}
	}
	g.each(slices.Concat(d.Wants, d.Upholds), name, func(to string) { add(g.wants, name, to) })
	g.each(d.WantedBy, name, func(by string) { add(g.wants, by, name) })
	g.each(d.RequiredBy, name, func(by string) {
		add(g.requires, by, name)
		g.needed[name] = append(g.needed[name], dependent{by, "it requires " + name, true})
	})
	needs(d.Requires, "it requires ", true)
	needs(d.Requisite, "it requires ", true)
	needs(d.BindsTo, "it is bound to ", true)
	needs(d.PartOf, "it is part of ", true)
	needs(d.StopPropagatedFrom, "it stops with ", false)
	g.each(d.PropagatesStopTo, name, func(to string) {
		g.needed[name] = append(g.needed[name], dependent{to, "it stops with " + name, false})
	})
	g.each(d.PropagatesReloadTo, name, func(to string) { add(g.reloads, name, to) })
	g.each(d.ReloadPropagatedFrom, name, func(from string) { add(g.reloads, from, name) })
	for _, to := range slices.Concat(g.requires[name], g.wants[name]) {
		add(g.users, to, name)
	}
	g.each(d.WantedBy, name, func(by string) { add(g.users, name, by) })
	g.each(d.RequiredBy, name, func(by string) { add(g.users, name, by) })
	g.each(d.Requisite, name, func(to string) { add(g.users, to, name) })
}

// order records a group's orderings. A target also comes after all that it
// pulls in, unless that one wants to come after the target.
func (g *Graph) order(name string) {
	spec := g.groups[name]
	g.each(spec.Deps.After, name, func(to string) { g.addEdge(name, edge{to, name, "After=" + to}) })
	g.each(spec.Deps.Before, name, func(to string) { g.addEdge(to, edge{name, name, "Before=" + to}) })
	if spec.Source.Kind != service.FromTarget {
		return
	}
	for _, to := range slices.Concat(g.requires[name], g.wants[name]) {
		o := g.groups[to]
		if o == nil || g.mentions(o.Deps.After, name) || g.mentions(spec.Deps.Before, to) {
			continue
		}
		g.addEdge(name, edge{to, name, "its own Wants= or Requires=" + to})
	}
}

func (g *Graph) mentions(list []string, name string) bool {
	return slices.ContainsFunc(list, func(n string) bool {
		to, ok := g.Resolve(n)
		return ok && to == name
	})
}

func (g *Graph) addEdge(name string, e edge) {
	if !slices.ContainsFunc(g.after[name], func(old edge) bool { return old.to == e.to }) {
		g.after[name] = append(g.after[name], e)
	}
}

// Before lists the groups that start before the named one, where both do.
func (g *Graph) Before(name string) []string {
	var out []string
	for _, e := range g.after[name] {
		if !g.inOneCircle(name, e.to) {
			out = append(out, e.to)
		}
	}
	sort.Strings(out)
	return out
}

// circle is a ring of orderings, each of which can be found in a file.
type circle struct {
	members []string
	text    string
}

func (g *Graph) inOneCircle(a, b string) bool {
	return g.circle[a] != nil && g.circle[a] == g.circle[b]
}

// findCircles finds the sets of groups that come after each other (Tarjan's
// strongly connected components) and names one ring in each.
func (g *Graph) findCircles() []service.Warning {
	t := tarjan{g: g, index: map[string]int{}, low: map[string]int{}, on: map[string]bool{}}
	for _, n := range g.names {
		if _, seen := t.index[n]; !seen {
			t.visit(n)
		}
	}
	var out []service.Warning
	for _, set := range t.sets {
		sort.Strings(set)
		c := &circle{members: set}
		for _, n := range set {
			g.circle[n] = c
		}
		c.text = g.ring(c)
		w := service.Warning{Text: fmt.Sprintf("the order of %s runs in a circle: %s; take one of these lines out", strings.Join(set, ", "), c.text)}
		if files := g.groups[set[0]].Source.Files; len(files) > 0 {
			w.File = files[0]
		}
		out = append(out, w)
	}
	return out
}

type tarjan struct {
	g          *Graph
	index, low map[string]int
	on         map[string]bool
	stack      []string
	sets       [][]string
}

func (t *tarjan) visit(n string) {
	t.index[n] = len(t.index)
	t.low[n] = t.index[n]
	t.stack = append(t.stack, n)
	t.on[n] = true
	for _, e := range t.g.after[n] {
		if _, seen := t.index[e.to]; !seen {
			t.visit(e.to)
			t.low[n] = min(t.low[n], t.low[e.to])
		} else if t.on[e.to] {
			t.low[n] = min(t.low[n], t.index[e.to])
		}
	}
	if t.low[n] != t.index[n] {
		return
	}
	i := slices.Index(t.stack, n)
	set := slices.Clone(t.stack[i:])
	t.stack = t.stack[:i]
	for _, m := range set {
		t.on[m] = false
	}
	if len(set) > 1 {
		t.sets = append(t.sets, set)
	}
}

// ring names the shortest circle through the first member, each line with the
// file that has it.
func (g *Graph) ring(c *circle) string {
	start := c.members[0]
	type hop struct {
		from string
		e    edge
	}
	came := map[string]hop{}
	queue := []string{start}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		for _, e := range g.after[n] {
			if _, seen := came[e.to]; seen || g.circle[e.to] != c {
				continue
			}
			came[e.to] = hop{n, e}
			queue = append(queue, e.to)
		}
	}
	var lines []string
	for at := start; ; {
		h := came[at]
		file := h.e.owner
		if files := g.groups[h.e.owner].Source.Files; len(files) > 0 {
			file = files[0]
		}
		lines = append(lines, fmt.Sprintf("%s in %s", h.e.text, file))
		if at = h.from; at == start {
			break
		}
	}
	slices.Reverse(lines)
	return strings.Join(lines, ", ")
}
