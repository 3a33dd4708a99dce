package daemonset

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

// world is a model of a cluster: what is true, beside a fleet that is told one
// node at a time.
type world struct {
	t      *rapid.T
	ds     *appsv1.DaemonSet
	policy *Policy
	fleet  *Fleet
	nodes  map[string]*Node
	now    time.Time
	pods   int
	hash   int
	// making is the revision of pods that are being made, by node.
	making map[string]string
	// labels of nodes, by node; only where options are drawn.
	labels map[string]map[string]string
	own    bool
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, nodes: map[string]*Node{}, now: time.Unix(1_700_000_000, 0), hash: 1, making: map[string]string{}}
	w.ds = &appsv1.DaemonSet{}
	w.ds.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	w.ds.Spec.MinReadySeconds = rapid.SampledFrom([]int32{0, 0, 5}).Draw(t, "minReadySeconds")
	if rapid.IntRange(0, 5).Draw(t, "strategy") == 0 {
		w.ds.Spec.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType
	} else {
		w.ds.Spec.UpdateStrategy.Type = appsv1.RollingUpdateDaemonSetStrategyType
		amount := rapid.SampledFrom([]intstr.IntOrString{
			intstr.FromInt32(1), intstr.FromInt32(2), intstr.FromString("10%"), intstr.FromString("50%"), intstr.FromString("100%"),
		}).Draw(t, "amount")
		none := intstr.FromInt32(0)
		ru := &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &amount, MaxSurge: &none}
		if rapid.Bool().Draw(t, "surge") {
			ru.MaxUnavailable, ru.MaxSurge = &none, &amount
		}
		w.ds.Spec.UpdateStrategy.RollingUpdate = ru
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "nodes") {
		n := &Node{Name: fmt.Sprintf("n%02d", i), Exists: true, Eligibility: Eligibility{Run: true, Continue: true}}
		o := w.addPod(n, "h1")
		o.Ready, o.ReadySince = true, w.now.Add(-time.Hour)
		w.nodes[n.Name] = n
	}
	w.compile()
	return w
}

// compile plans all nodes anew, as a change of the DaemonSet does.
func (w *world) compile() {
	p, err := Compile(w.ds, fmt.Sprintf("h%d", w.hash), Setting{Own: w.own})
	if err != nil {
		w.t.Fatal(err)
	}
	former := w.fleet
	w.policy, w.fleet = p, NewFleet(p)
	w.fleet.Inherit(former)
	for _, name := range w.names() {
		w.set(name)
	}
}

// node is what the fleet is told of a node.
func (w *world) node(name string) Node {
	n := *w.nodes[name]
	n.Pods = slices.Clone(n.Pods)
	n.Wave = w.policy.WaveOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels[name]}})
	return n
}

func (w *world) names() []string { return slices.Sorted(maps.Keys(w.nodes)) }

func (w *world) set(name string) Verdict {
	n := w.node(name)
	v := w.fleet.Set(n, w.now)
	if !n.Exists && len(n.Pods) == 0 {
		delete(w.nodes, name)
	}
	return v
}

// act does what the node's verdict says, and tells the fleet.
func (w *world) act(name string) {
	for range 10 {
		v := w.set(name)
		if len(v.Actions) == 0 {
			return
		}
		for _, a := range v.Actions {
			n := w.nodes[name]
			up := n.Run && w.up(n)
			w.start(a)
			// Of two pods the older one stays, be it the worse one.
			if up && !w.up(n) && a.Cause != Excess {
				w.t.Fatalf("%v takes the node down", a)
			}
		}
	}
	w.t.Fatalf("node %s never comes to rest: %v", name, w.set(name).Actions)
}

func (w *world) start(a Action) {
	n := w.nodes[a.Node]
	if a.Reason == "" || a.Cause == "" {
		w.t.Fatalf("an action without a reason: %+v", a)
	}
	if a.Create() {
		if !n.Exists || !n.Run || n.Creating {
			w.t.Fatalf("%v, but the node is %+v", a, *n)
		}
		w.checkMake(a)
		n.Creating = true
		w.making[a.Node] = w.fleet.Make(a.Node, w.now)
		return
	}
	w.checkTurn(a)
	for i := range n.Pods {
		if n.Pods[i].UID == a.UID && n.Pods[i].Name == a.Pod {
			if n.Pods[i].Deleting {
				w.t.Fatalf("%v, which is going already", a)
			}
			n.Pods[i].Deleting, n.Pods[i].Asked = true, true
			if a.Cause == Failed {
				n.Failures = n.Failures.Next(w.now)
			}
			return
		}
	}
	w.t.Fatalf("%v, which is not the DaemonSet's", a)
}

// down counts eligible nodes without an available pod, as a user would.
func (w *world) down() int {
	down := 0
	for _, n := range w.nodes {
		if !n.Exists || !n.Run || w.policy.skips && n.NotReady && w.onlyOld(n) {
			continue
		}
		down += one(!w.up(n))
	}
	return down
}

// up says whether a node has an available pod.
func (w *world) up(n *Node) bool {
	return slices.ContainsFunc(n.Pods, func(o Pod) bool {
		return !o.Deleting && o.Ready && !o.ReadySince.Add(w.policy.minReady).After(w.now)
	})
}

// doubled counts eligible nodes that run an available old pod and a new one, or
// are about to.
func (w *world) doubled() int {
	count := 0
	for _, n := range w.nodes {
		old, young := false, n.Creating
		for _, o := range n.Pods {
			switch {
			case o.Deleting && !o.Asked, o.ended():
			case o.Hash == w.policy.Hash:
				young = true
			default:
				old = old || o.Ready
			}
		}
		count += one(n.Exists && old && young)
	}
	return count
}

func (w *world) roll() {
	for range 200 {
		down, doubled := w.down(), w.doubled()
		steps := w.fleet.Rollout(1000, w.now)
		if len(steps) == 0 {
			return
		}
		unavailable, surge := w.policy.Budget(w.fleet.Tally().Desired)
		free := 0
		for _, a := range steps {
			// A pod beside one that is not available uses no budget.
			free += one(a.Create() && a.Cause == Broken)
			w.start(a)
			w.set(a.Node)
			// The controller may die after any of the steps.
			got, twice := w.down(), w.doubled()
			switch {
			case w.policy.surges && twice > max(doubled, surge)+free:
				w.t.Fatalf("%d nodes run two pods, maxSurge is %d; before %d: after %v of %v", twice, surge, doubled, a, steps)
			case w.policy.surges && got > down:
				w.t.Fatalf("a surging update took %d nodes down: after %v of %v", got-down, a, steps)
			case !w.policy.surges && got > max(down, unavailable):
				w.t.Fatalf("%d nodes are down, maxUnavailable is %d; before %d: after %v of %v", got, unavailable, down, a, steps)
			}
		}
	}
	w.t.Fatal("the rollout gives steps without end")
}

// check holds the fleet equal to one that is told everything at once.
func (w *world) check() {
	fresh := NewFleet(w.policy)
	for _, name := range w.names() {
		fresh.Set(w.node(name), w.now)
	}
	if got, want := w.fleet.Tally(), fresh.Tally(); got != want {
		w.t.Fatalf("running tallies %+v, recomputed %+v", got, want)
	}
	if got, want := w.fleet.Rollout(1000, w.now), fresh.Rollout(1000, w.now); !reflect.DeepEqual(got, want) {
		w.t.Fatalf("next steps %v, recomputed %v", got, want)
	}
	if got, want := w.fleet.Report(nil, w.now), fresh.Report(nil, w.now); got != want {
		w.t.Fatalf("report %+v, recomputed %+v", got, want)
	}
	if !reflect.DeepEqual(w.fleet.hashes, fresh.hashes) {
		w.t.Fatalf("revisions in use %v, recomputed %v", w.fleet.hashes, fresh.hashes)
	}
}

func (w *world) advance(d time.Duration) {
	w.now = w.now.Add(d)
	for _, name := range w.names() {
		if s := w.fleet.nodes[name]; s != nil && !s.verdict.Wake.IsZero() && !s.verdict.Wake.After(w.now) {
			w.act(name)
		}
	}
}

func (w *world) addPod(n *Node, hash string) *Pod {
	w.pods++
	n.Pods = append(n.Pods, Pod{
		Name: fmt.Sprintf("p%d", w.pods), UID: types.UID(fmt.Sprint(w.pods)), Created: w.now,
		Hash: hash, Phase: corev1.PodRunning, Bound: true,
	})
	return &n.Pods[len(n.Pods)-1]
}

// landed makes the pod that is being made appear, or not.
func (w *world) landed(n *Node, ok bool) {
	if n.Creating {
		n.Creating = false
		if ok && n.Exists {
			w.addPod(n, w.making[n.Name])
		}
	}
}

// event does one random thing to one node and tells the fleet of it.
func (w *world) event() {
	t := w.t
	switch rapid.IntRange(0, 10).Draw(t, "what") {
	case 10:
		w.restart()
		return
	case 0:
		name := fmt.Sprintf("n%02d", rapid.IntRange(0, 15).Draw(t, "new node"))
		if w.nodes[name] == nil {
			w.nodes[name] = &Node{Name: name}
		}
		n := w.nodes[name]
		n.Exists = true
		n.Eligibility = rapid.SampledFrom([]Eligibility{
			{Run: true, Continue: true},
			{Run: true, Continue: true},
			{Continue: true, Reason: "taint"},
			{Reason: "labels"},
		}).Draw(t, "eligibility")
		w.act(name)
		return
	case 1:
		w.hash++
		w.compile()
		for _, name := range w.names() {
			w.act(name)
		}
		return
	case 2:
		w.advance(time.Duration(rapid.IntRange(1, 10).Draw(t, "seconds")) * time.Second)
		return
	case 3, 4, 5:
		w.roll()
		return
	case 6, 7:
		w.agents()
		return
	}
	if len(w.nodes) == 0 {
		return
	}
	n := w.nodes[rapid.SampledFrom(w.names()).Draw(t, "node")]
	w.podEvent(n)
	w.act(n.Name)
}

// restart has the controller die and another one begin, which knows only what
// the cluster shows: pods are made that were being made, or not.
func (w *world) restart() {
	for _, name := range w.names() {
		n := w.nodes[name]
		w.landed(n, rapid.Bool().Draw(w.t, "made before the end"))
		n.Failures = Failures{}
		for i := range n.Pods {
			n.Pods[i].Asked = false
		}
	}
	w.fleet = nil
	w.compile()
	for _, name := range w.names() {
		w.act(name)
	}
}

// agents finish some of what was begun, as they do most of the time.
func (w *world) agents() {
	for _, name := range w.names() {
		if rapid.IntRange(0, 3).Draw(w.t, "idle") == 0 {
			continue
		}
		n := w.nodes[name]
		w.landed(n, true)
		n.Pods = slices.DeleteFunc(n.Pods, func(o Pod) bool { return o.Deleting })
		for i := range n.Pods {
			if o := &n.Pods[i]; !o.ended() && !o.Ready {
				o.Ready, o.ReadySince = true, w.now
			}
		}
		w.act(name)
	}
}

func (w *world) podEvent(n *Node) {
	t := w.t
	if len(n.Pods) == 0 {
		w.landed(n, rapid.Bool().Draw(t, "made"))
		return
	}
	i := rapid.IntRange(0, len(n.Pods)-1).Draw(t, "pod")
	o := &n.Pods[i]
	switch rapid.IntRange(0, 7).Draw(t, "pod event") {
	case 0:
		o.Phase, o.Ready = corev1.PodFailed, false
	case 1:
		o.Phase, o.Ready = corev1.PodSucceeded, false
	case 2:
		n.Exists = false
		n.Eligibility = Eligibility{Reason: "the node is gone"}
	case 3:
		w.addPod(n, rapid.SampledFrom([]string{"h0", w.policy.Hash}).Draw(t, "hash")).Bound = rapid.Bool().Draw(t, "bound")
	case 4:
		o.Asked = false // what we asked for is seen
		w.landed(n, true)
	case 5:
		n.Pods = slices.Delete(n.Pods, i, i+1)
	default:
		if ready := rapid.Bool().Draw(t, "ready"); ready != o.Ready && !o.ended() {
			o.Ready, o.ReadySince = ready, w.now
		}
	}
}

func TestFleetUnderAnyEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(1, 80).Draw(t, "events") {
			w.event()
			w.check()
		}
		w.converge()
	})
}

// converge lets agents do their work and expects the state that was asked for.
func (w *world) converge() {
	for range 60 {
		w.advance(time.Hour)
		for _, name := range w.names() {
			n := w.nodes[name]
			w.landed(n, true)
			n.Pods = slices.DeleteFunc(n.Pods, func(o Pod) bool { return o.Deleting || !n.Exists && o.Bound })
			for i := range n.Pods {
				if o := &n.Pods[i]; !o.ended() && !o.Ready {
					o.Ready, o.ReadySince, o.Bound = true, w.now, n.Exists
				}
			}
			w.act(name)
		}
		w.check()
		w.roll()
	}
	tally := w.fleet.Tally()
	for name, n := range w.nodes {
		live := 0
		for _, o := range n.Pods {
			live += one(!o.Deleting)
			if w.policy.rolling && n.Run && o.Hash != w.policy.Hash && w.due(name) {
				w.t.Fatalf("node %s still runs %s: %+v", name, o.Hash, tally)
			}
		}
		if n.Run && live != 1 || !n.Continue && live != 0 {
			w.t.Fatalf("node %s ends with %d pods: %+v", name, live, *n)
		}
	}
	if tally.Available != tally.Desired || tally.Unavailable != 0 || tally.Surging != 0 {
		w.t.Fatalf("the end is not calm: %+v", tally)
	}
}

// BenchmarkSet shows that judging one node costs the same in any fleet.
func BenchmarkSet(b *testing.B) {
	for _, size := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ds := &appsv1.DaemonSet{}
			ds.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
			p, err := Compile(ds, "h", Setting{})
			if err != nil {
				b.Fatal(err)
			}
			f := NewFleet(p)
			node := func(i int) Node {
				return Node{
					Name: fmt.Sprintf("node-%06d", i), Exists: true, Eligibility: Eligibility{Run: true, Continue: true},
					Pods: []Pod{{Name: "p", UID: types.UID(fmt.Sprint(i)), Hash: "old", Phase: corev1.PodRunning, Bound: true, Ready: true}},
				}
			}
			now := time.Unix(0, 0)
			for i := range size {
				f.Set(node(i), now)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				f.Set(node(i%size), now)
				f.Rollout(1, now)
			}
		})
	}
}
