package daemonset

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

// The rules of docs/ROLLOUTS.md, worked out anew from all nodes at each step
// and without the planner's own data.

// drawOptions gives the DaemonSet annotations, some of them wrong now and then.
func (w *world) drawOptions() {
	t := w.t
	a := map[string]string{}
	put := func(key string, values ...string) {
		if v := rapid.SampledFrom(values).Draw(t, key); v != "" {
			a[key] = v
		}
	}
	put(PausedKey, "", "", "", "false", "true")
	put(PartitionKey, "", "", "1", "3", "30%", "100%")
	put(CanaryKey, "", "canary=yes")
	put(OrderByKey, "", "zone")
	put(BakeKey, "", "7s", "1h")
	put(NotReadyNodesKey, "", "skip", "count")
	put(DeadlineKey, "", "20s")
	if rapid.IntRange(0, 12).Draw(t, "wrong") == 0 {
		put(rapid.SampledFrom([]string{PausedKey, PartitionKey, BakeKey, OptionPrefix + "x"}).Draw(t, "key"), "no such value", "-1")
	}
	w.ds.Annotations = a
}

func (w *world) onlyOld(n *Node) bool {
	old := false
	for _, o := range n.Pods {
		if o.Deleting {
			continue
		}
		if o.Hash == w.policy.Hash {
			return false
		}
		old = true
	}
	return old
}

// wave is the node's place among the waves, as the page says it.
func (w *world) wave(node string) string {
	labels := w.labels[node]
	if w.ds.Annotations[CanaryKey] != "" && labels["canary"] == "yes" {
		return "0"
	}
	if w.ds.Annotations[OrderByKey] == "" {
		return "1"
	}
	if zone, ok := labels["zone"]; ok {
		return "1" + fmt.Sprintf("%04s", zone)
	}
	return "2"
}

func (w *world) wrong() bool {
	_, wrong := ParseOptions(w.ds.Annotations)
	return len(wrong) > 0
}

// due says whether the partition, a pause or a wrong value lets the update come
// to the node at some time.
func (w *world) due(node string) bool {
	if w.wrong() || w.ds.Annotations[PausedKey] == "true" {
		return false
	}
	var desired []string
	for name, n := range w.nodes {
		if n.Exists && n.Run {
			desired = append(desired, name)
		}
	}
	keep := 0
	if v := w.ds.Annotations[PartitionKey]; v != "" {
		part, _ := parsePartition(v)
		keep, _ = scaled(part, len(desired))
	}
	later := 0
	for _, name := range desired {
		if cmp.Or(cmp.Compare(w.wave(name), w.wave(node)), cmp.Compare(name, node)) > 0 {
			later++
		}
	}
	return later >= keep
}

// early names a node of an earlier wave that is not done, or has not baked.
func (w *world) early(node string) string {
	bake, _ := time.ParseDuration(cmp.Or(w.ds.Annotations[BakeKey], "0s"))
	for _, name := range w.names() {
		n := w.nodes[name]
		if !n.Exists || w.wave(name) >= w.wave(node) || w.policy.skips && n.NotReady {
			continue
		}
		if !n.Run {
			live := slices.DeleteFunc(slices.Clone(n.Pods), func(o Pod) bool { return o.Deleting })
			if !w.policy.surges && len(live) == 1 && live[0].Hash != w.policy.Hash {
				return name + ", which keeps its old pod,"
			}
			continue
		}
		// The oldest pod counts, until its end is seen.
		present := slices.DeleteFunc(slices.Clone(n.Pods), func(o Pod) bool { return o.Deleting && o.ended() })
		oldestFirst(present)
		if len(present) == 0 {
			return name + ", which has no pod,"
		}
		o := present[0]
		at := o.ReadySince.Add(w.policy.minReady)
		switch {
		case o.Hash != w.policy.Hash || !o.Ready || at.After(w.now):
			return name + ", which is not done,"
		case at.Add(bake).After(w.now):
			return name + ", which bakes,"
		}
	}
	return ""
}

// checkTurn holds an update of a node to the order.
func (w *world) checkTurn(a Action) {
	if a.Cause != Outdated && a.Cause != Broken {
		return
	}
	n := w.nodes[a.Node]
	if a.Cause == Broken && !n.Run && w.policy.surges {
		return // it is removed, not updated
	}
	if !w.due(a.Node) {
		w.t.Fatalf("%v, with %v", a, w.ds.Annotations)
	}
	if e := w.early(a.Node); e != "" {
		w.t.Fatalf("%v, before %s with %v", a, e, w.ds.Annotations)
	}
	if w.policy.skips && n.NotReady {
		w.t.Fatalf("%v, which is not ready", a)
	}
}

// checkMake holds the making of a pod to the order: where the update may not
// come, no pod of the new revision is made beside or after one of an old one.
func (w *world) checkMake(a Action) {
	w.checkTurn(a)
	make := w.fleet.Make(a.Node, w.now)
	if !w.policy.rolling {
		if make != w.policy.Hash {
			w.t.Fatalf("%v makes %s; the strategy is OnDelete", a, make)
		}
		return
	}
	if make != w.policy.Hash {
		if w.due(a.Node) && w.early(a.Node) == "" {
			w.t.Fatalf("%v makes %s where %s is due", a, make, w.policy.Hash)
		}
		return
	}
	last := w.fleet.nodes[a.Node].last
	if last != "" && last != w.policy.Hash && (!w.due(a.Node) || w.early(a.Node) != "") {
		w.t.Fatalf("%v updates the node from %s before %s with %v", a, last, w.early(a.Node), w.ds.Annotations)
	}
}

func TestFleetWithOptionsUnderAnyEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.own = rapid.Bool().Draw(t, "own")
		w.labels = map[string]map[string]string{}
		for i := range 16 {
			l := map[string]string{}
			if zone := rapid.SampledFrom([]string{"", "1", "2", "10"}).Draw(t, "zone"); zone != "" {
				l["zone"] = zone
			}
			if rapid.IntRange(0, 4).Draw(t, "canary") == 0 {
				l["canary"] = "yes"
			}
			w.labels[fmt.Sprintf("n%02d", i)] = l
		}
		w.drawOptions()
		w.compile()
		for _, name := range w.names() {
			w.act(name)
		}
		w.check()
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			switch rapid.IntRange(0, 14).Draw(t, "kind") {
			case 0:
				w.drawOptions()
				w.compile()
				for _, name := range w.names() {
					w.act(name)
				}
			case 1:
				if len(w.nodes) > 0 {
					n := w.nodes[rapid.SampledFrom(w.names()).Draw(t, "node")]
					n.NotReady = rapid.Bool().Draw(t, "not ready")
					w.act(n.Name)
				}
			default:
				w.event()
			}
			w.check()
		}
		for _, name := range w.names() {
			w.nodes[name].NotReady = false
			w.act(name)
		}
		w.converge()
		// With nothing that holds it back, the update comes to all.
		w.ds.Annotations = nil
		w.compile()
		w.converge()
	})
}

// The revision of a node that an update has not reached is in use while the
// node has no pod.
func TestHeldRevisionIsInUse(t *testing.T) {
	p := policy(t, nil)
	p.gated, p.options.Paused = true, true
	f := NewFleet(p)
	n := Node{Name: "n", Exists: true, Eligibility: Eligibility{Run: true, Continue: true}, Pods: pods("old ready")}
	f.Set(n, t0)
	n.Pods = nil
	f.Set(n, t0)
	if !f.Uses("old") || f.Make("n", t0) != "old" {
		t.Errorf("used %v, made is %s", f.Uses("old"), f.Make("n", t0))
	}
	n.Exists = false
	f.Set(n, t0)
	if f.Uses("old") {
		t.Error("it is in use without a node")
	}
}

func TestWaves(t *testing.T) {
	p := &Policy{}
	p.options, _ = ParseOptions(map[string]string{CanaryKey: "canary", OrderByKey: "zone"})
	var all []Wave
	for _, l := range []map[string]string{
		{"zone": "b"},
		{"zone": "10"},
		{},
		{"zone": "9"},
		{"zone": ""},
		{"canary": "", "zone": "z"},
		{"zone": "a"},
		{"canary": ""},
	} {
		all = append(all, p.WaveOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: l}}))
	}
	slices.SortFunc(all, compareWaves)
	var names []string
	for _, w := range slices.Compact(all) {
		names = append(names, p.WaveName(w))
	}
	if got, want := fmt.Sprintf("%q", names), `["the canary (canary)" "zone=9" "zone=10" "zone=" "zone=a" "zone=b" "the nodes without zone"]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
