package graph

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"legion.dev/legion/internal/service"
)

func group(name string, d service.Dependencies) service.Group {
	kind := service.FromUnit
	if strings.HasSuffix(name, ".target") {
		kind = service.FromTarget
	}
	return service.Group{Name: name, Deps: d, Source: service.Source{Kind: kind, Files: []string{"/u/" + name}}}
}

func none(string) bool { return false }

func render(p Plan) string {
	var out []string
	for _, s := range p {
		out = append(out, fmt.Sprintf("%s %s (%s)", s.Kind, s.Group, s.Reason))
	}
	return strings.Join(out, "\n")
}

func TestStartPullsInAndOrders(t *testing.T) {
	g, problems := New([]service.Group{
		group("web.service", service.Dependencies{Requires: []string{"db"}, Wants: []string{"log.service", "absent.service"}, After: []string{"db.service", "log.service"}}),
		group("db.service", service.Dependencies{Aliases: []string{"db"}, Conflicts: []string{"old.service"}}),
		group("log.service", service.Dependencies{}),
		group("old.service", service.Dependencies{}),
		group("all.target", service.Dependencies{Wants: []string{"web.service", "broken.service"}}),
		group("broken.service", service.Dependencies{Requires: []string{"absent.service"}}),
		group("linked.service", service.Dependencies{WantedBy: []string{"all.target"}}),
	})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p, err := g.Start("all.target", func(n string) bool { return n == "old.service" })
	want := `stop old.service (conflicts with db.service)
start db.service (required by web.service)
start log.service (wanted by web.service)
start web.service (wanted by all.target)
start linked.service (wanted by all.target)
start all.target (request)`
	if err != nil || sortLines(render(p)) != sortLines(want) {
		t.Errorf("got:\n%s\n%v", render(p), err)
	}
	checkOrder(t, g, p)
	if _, err := g.Start("broken.service", none); err == nil || !strings.Contains(err.Error(), "absent.service, which does not exist") {
		t.Errorf("broken: %v", err)
	}
	stop, err := g.Stop("db.service", func(n string) bool { return n == "db.service" || n == "web.service" })
	want = "stop web.service (it requires db.service)\nstop db.service (request)"
	if err != nil || render(stop) != want {
		t.Errorf("stop:\n%s\n%v", render(stop), err)
	}
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestContradiction(t *testing.T) {
	g, _ := New([]service.Group{
		group("a.service", service.Dependencies{Requires: []string{"b.service", "c.service"}}),
		group("b.service", service.Dependencies{Conflicts: []string{"c.service"}}),
		group("c.service", service.Dependencies{}),
		group("w.service", service.Dependencies{Requires: []string{"b.service"}, Wants: []string{"c.service"}}),
		group("r.service", service.Dependencies{Requisite: []string{"c.service"}}),
	})
	if _, err := g.Start("a.service", none); err == nil {
		t.Error("a plan that starts and stops c.service")
	}
	if p, err := g.Start("w.service", none); err != nil || len(p) != 2 {
		t.Errorf("a wish that cannot be met is not dropped: %v %v", render(p), err)
	}
	if _, err := g.Start("r.service", none); err == nil || !strings.Contains(err.Error(), "Requisite=") {
		t.Errorf("requisite: %v", err)
	}
}

func TestCircle(t *testing.T) {
	g, problems := New([]service.Group{
		group("a.service", service.Dependencies{After: []string{"b.service"}, Requires: []string{"b.service"}}),
		group("b.service", service.Dependencies{After: []string{"c.service"}}),
		group("c.service", service.Dependencies{Before: []string{"x.service"}, After: []string{"a.service"}}),
		group("x.service", service.Dependencies{After: []string{"a.service"}, Wants: []string{"b.service", "c.service"}}),
	})
	want := "the order of a.service, b.service, c.service runs in a circle: After=b.service in /u/a.service, After=c.service in /u/b.service, After=a.service in /u/c.service; take one of these lines out"
	if len(problems) != 1 || problems[0].Text != want {
		t.Errorf("problems %+v", problems)
	}
	if _, err := g.Start("a.service", none); err == nil || !strings.Contains(err.Error(), "circle") {
		t.Errorf("start of a member that requires another: %v", err)
	}
	p, err := g.Start("x.service", none)
	if err != nil || len(p) != 3 || p[2].Group != "x.service" {
		t.Errorf("start of an innocent:\n%s\n%v", render(p), err)
	}
	if b := g.Before("x.service"); !slices.Equal(b, []string{"a.service", "c.service"}) {
		t.Errorf("before x.service: %q", b)
	}
}

func TestTargetWaitsForItsUnits(t *testing.T) {
	g, problems := New([]service.Group{
		group("t.target", service.Dependencies{Wants: []string{"a.service", "late.service"}}),
		group("a.service", service.Dependencies{}),
		group("late.service", service.Dependencies{After: []string{"t.target"}}),
	})
	p, err := g.Start("t.target", none)
	if err != nil || len(problems) > 0 || len(p) != 3 || p[0].Group != "a.service" || p[2].Group != "late.service" {
		t.Errorf("%s\n%v %v", render(p), err, problems)
	}
}

// checkOrder: no step stands before one that it waits for.
func checkOrder(t interface{ Errorf(string, ...any) }, g *Graph, p Plan) {
	at := map[string]int{}
	for i, s := range p {
		at[s.Group] = i
	}
	for i, s := range p {
		for _, n := range s.After {
			if at[n] >= i {
				t.Errorf("%s waits for %s, which stands behind it:\n%s", s.Group, n, render(p))
			}
		}
		for _, e := range g.after[s.Group] {
			j, in := at[e.to]
			if !in || g.inOneCircle(s.Group, e.to) {
				continue
			}
			stops := s.Kind == Stop && p[j].Kind == Stop
			if starts := s.Kind != Stop && p[j].Kind != Stop; stops && j < i || starts && j > i {
				t.Errorf("%s is after %s:\n%s", s.Group, e.to, render(p))
			}
		}
	}
}

// drawn makes any set of groups, names that do not exist included.
func drawn(t *rapid.T) []service.Group {
	n := rapid.IntRange(1, 7).Draw(t, "groups")
	names := make([]string, 0, n+1)
	for i := range n {
		names = append(names, fmt.Sprintf("%c.service", 'a'+i))
	}
	some := func(what string) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(append(names, "absent.service")), 0, 2, rapid.ID).Draw(t, what)
	}
	var out []service.Group
	for _, name := range names {
		out = append(out, group(name, service.Dependencies{
			Requires: some("requires"), Wants: some("wants"), After: some("after"), Before: some("before"),
			Conflicts: rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 1, rapid.ID).Draw(t, "conflicts"),
			PartOf:    some("partof"),
		}))
	}
	return out
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		groups := drawn(t)
		g, _ := New(groups)
		on := map[string]bool{}
		for _, x := range groups {
			on[x.Name] = rapid.Bool().Draw(t, "active")
		}
		active := func(n string) bool { return on[n] }
		name := rapid.SampledFrom(g.names).Draw(t, "name")
		for _, kind := range []Kind{Start, Stop, Restart} {
			p, err := g.plan(name, kind, active)
			if err != nil {
				continue
			}
			checkOrder(t, g, p)
			checkPlan(t, g, p, name, kind, active)
			// The order in which groups are given changes nothing.
			slices.Reverse(groups)
			again, _ := New(groups)
			p2, err := again.plan(name, kind, active)
			if err != nil || sortLines(render(p)) != sortLines(render(p2)) {
				t.Errorf("another order of the same groups plans\n%s\nnot\n%s", render(p2), render(p))
			}
			slices.Reverse(groups)
		}
	})
}

// checkPlan: the request is in it, nothing is there twice, each has a reason,
// what starts has what it requires, and no conflict is left.
func checkPlan(t *rapid.T, g *Graph, p Plan, name string, kind Kind, active func(string) bool) {
	steps := map[string]Kind{}
	for _, s := range p {
		if steps[s.Group] != "" || s.Reason == "" || !g.exists(s.Group) {
			t.Errorf("step %+v", s)
		}
		steps[s.Group] = s.Kind
	}
	if steps[name] != kind {
		t.Errorf("%s of %s is not in the plan", kind, name)
	}
	up := func(n string) bool { return steps[n] == Start || steps[n] == Restart || steps[n] == "" && active(n) }
	for n, k := range steps {
		if k == Stop {
			if kind != Stop && !slices.ContainsFunc(g.names, func(o string) bool { return steps[o] != "" && steps[o] != Stop }) {
				t.Errorf("%s stops for nothing", n)
			}
			continue
		}
		for _, r := range g.requires[n] {
			if !up(r) {
				t.Errorf("%s runs without %s:\n%s", n, r, render(p))
			}
		}
		for _, c := range g.conflicts[n] {
			if up(c) {
				t.Errorf("%s runs beside %s:\n%s", n, c, render(p))
			}
		}
	}
}
