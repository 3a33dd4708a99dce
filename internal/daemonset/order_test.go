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
	"pgregory.net/rapid"
)

// news is one state of a node that a fleet is told.
type news struct{ node Node }

// drawNews draws states of a node, one after the other: anything that a
// cluster may show.
func (w *world) drawNews(name string) []news {
	t := w.t
	var all []news
	for range rapid.IntRange(1, 4).Draw(t, "states of "+name) {
		n := Node{Name: name, Exists: rapid.IntRange(0, 7).Draw(t, "exists") > 0}
		n.Eligibility = Eligibility{Reason: "the node is gone"}
		if n.Exists {
			n.Eligibility = rapid.SampledFrom([]Eligibility{
				{Run: true, Continue: true},
				{Run: true, Continue: true},
				{Continue: true, Reason: "taint"},
				{Reason: "labels"},
				{Reason: "no handler", Lacks: "no handler"},
			}).Draw(t, "eligibility")
		}
		n.NotReady = rapid.IntRange(0, 4).Draw(t, "not ready") == 0
		n.Creating = rapid.IntRange(0, 4).Draw(t, "creating") == 0
		n.Wave = w.policy.WaveOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels[name]}})
		for i := range rapid.IntRange(0, 3).Draw(t, "pods") {
			o := Pod{
				Name: fmt.Sprintf("%s-p%d", name, i), UID: types.UID(fmt.Sprintf("%s-%d", name, i)), Bound: true,
				Created:  w.now.Add(-time.Duration(rapid.IntRange(0, 100).Draw(t, "age")) * time.Second),
				Hash:     rapid.SampledFrom([]string{"h0", "h1", w.policy.Hash}).Draw(t, "hash"),
				Phase:    rapid.SampledFrom([]corev1.PodPhase{corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodFailed, corev1.PodSucceeded}).Draw(t, "phase"),
				Deleting: rapid.IntRange(0, 4).Draw(t, "deleting") == 0,
				Trouble:  rapid.SampledFrom([]string{"", "", "ImagePull", "crash loop"}).Draw(t, "trouble"),
			}
			if o.Ready = o.Phase == corev1.PodRunning && rapid.Bool().Draw(t, "ready"); o.Ready {
				o.ReadySince = w.now.Add(-time.Duration(rapid.IntRange(0, 20).Draw(t, "since")) * time.Second)
			}
			o.Asked = o.Deleting && rapid.Bool().Draw(t, "asked")
			n.Pods = append(n.Pods, o)
		}
		all = append(all, news{n})
	}
	return all
}

// told is a fleet that heard the news of all nodes, each node's in its order,
// those of different nodes in any.
func (w *world) told(all map[string][]news, label string) *Fleet {
	f := NewFleet(w.policy)
	f.Begin(w.now.Add(-time.Hour))
	var turns []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for range all[name] {
			turns = append(turns, name)
		}
	}
	next := map[string]int{}
	for _, name := range rapid.Permutation(turns).Draw(w.t, label) {
		w.tell(f, all[name][next[name]].node)
		next[name]++
	}
	return f
}

func (w *world) tell(f *Fleet, n Node) {
	n.Pods = slices.Clone(n.Pods)
	f.Set(n, w.now)
}

// same holds two fleets to be in the same state, as far as anybody can tell.
func (w *world) same(why string, a, b *Fleet, names []string) {
	t := w.t
	t.Helper()
	for _, c := range []struct {
		what string
		a, b any
	}{
		{"tallies", a.Tally(), b.Tally()},
		{"next steps", a.Rollout(1000, w.now), b.Rollout(1000, w.now)},
		{"report", a.Report(nil, w.now), b.Report(nil, w.now)},
		{"revisions of pods", a.hashes, b.hashes},
		{"last revisions", a.lasts, b.lasts},
	} {
		if !reflect.DeepEqual(c.a, c.b) {
			t.Fatalf("%s: %s are %+v and %+v", why, c.what, c.a, c.b)
		}
	}
	for _, name := range names {
		x, inX := a.Verdict(name)
		y, inY := b.Verdict(name)
		if inX != inY || !reflect.DeepEqual(x, y) {
			t.Fatalf("%s: the verdicts of %s are %+v and %+v", why, name, x, y)
		}
		if x, y := a.Make(name, w.now), b.Make(name, w.now); x != y {
			t.Fatalf("%s: on %s pods of %s and of %s are made", why, name, x, y)
		}
		if x, y := a.Lets(name, w.now), b.Lets(name, w.now); x != y {
			t.Fatalf("%s: an update may come to %s: %v and %v", why, name, x, y)
		}
	}
}

// The order in which the news of different nodes come makes no difference, nor
// does it make one to hear the same once more.
func TestAnyOrderOfEventsEndsInTheSameState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		w.own = rapid.Bool().Draw(t, "own")
		w.labels = map[string]map[string]string{}
		all := map[string][]news{}
		for i := range rapid.IntRange(1, 10).Draw(t, "fleet") {
			name := fmt.Sprintf("n%02d", i)
			w.labels[name] = map[string]string{"zone": rapid.SampledFrom([]string{"1", "2", "10"}).Draw(t, "zone")}
			if rapid.IntRange(0, 4).Draw(t, "canary") == 0 {
				w.labels[name]["canary"] = "yes"
			}
		}
		w.drawOptions()
		w.nodes = map[string]*Node{}
		w.compile()
		for _, name := range slices.Sorted(maps.Keys(w.labels)) {
			all[name] = w.drawNews(name)
		}
		names := slices.Sorted(maps.Keys(all))
		a, b := w.told(all, "one order"), w.told(all, "another order")
		w.same("another order", a, b, names)
		// Idempotent: the last news once more, in any order.
		for _, name := range rapid.Permutation(names).Draw(t, "again") {
			w.tell(b, all[name][len(all[name])-1].node)
		}
		w.same("told twice", a, b, names)
		// What is planned is only planned: asking changes nothing.
		a.Rollout(1, w.now)
		a.Report(nil, w.now)
		w.same("asked twice", a, b, names)
	})
}

// BenchmarkGate is what it costs to find out where an update may come now, by
// how many waves there are.
func BenchmarkGate(b *testing.B) {
	for _, waves := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(waves), func(b *testing.B) {
			ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{OrderByKey: "host", BakeKey: "10m"}}}
			ds.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
			p, err := Compile(ds, "new", Setting{})
			if err != nil {
				b.Fatal(err)
			}
			f, now := NewFleet(p), t0.Add(24*time.Hour)
			for i := range waves {
				n := Node{
					Name: fmt.Sprintf("n%06d", i), Exists: true, Eligibility: Eligibility{Run: true, Continue: true},
					Wave: Wave{After: true, Value: fmt.Sprintf("w%06d", i)},
				}
				word := "new ready"
				if i == waves-1 {
					word = "old ready"
				}
				n.Pods = pods(word)
				n.Pods[0].ReadySince = t0
				f.Set(n, now)
			}
			if g := f.Gate(now); !g.InWaves || !g.Until.IsZero() {
				b.Fatalf("%+v", g)
			}
			b.ReportAllocs()
			for b.Loop() {
				f.Gate(now)
			}
		})
	}
}
