package controller_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/daemonset"
)

func annotated(pairs ...string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) {
		if ds.Annotations == nil {
			ds.Annotations = map[string]string{}
		}
		for i := 0; i < len(pairs); i += 2 {
			ds.Annotations[pairs[i]] = pairs[i+1]
		}
	}
}

func labelled(pairs ...string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		for i := 0; i < len(pairs); i += 2 {
			n.Labels[pairs[i]] = pairs[i+1]
		}
	}
}

func conditionOf(ds *appsv1.DaemonSet, t appsv1.DaemonSetConditionType) appsv1.DaemonSetCondition {
	for _, c := range ds.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return appsv1.DaemonSetCondition{}
}

// untilCondition waits for a condition with that reason.
func (f *field) untilCondition(name string, t appsv1.DaemonSetConditionType, reason string) *appsv1.DaemonSet {
	f.Helper()
	return f.untilStatus(name, fmt.Sprintf("condition %s with reason %s", t, reason), func(ds *appsv1.DaemonSet) bool {
		return ds.Status.ObservedGeneration == ds.Generation && conditionOf(ds, t).Reason == reason
	})
}

// made returns the names of the nodes whose pods run an image.
func (f *field) made(image string) []string {
	f.Helper()
	var names []string
	for _, p := range f.pods() {
		if p.Spec.Containers[0].Image == image && p.DeletionTimestamp == nil {
			names = append(names, strings.TrimPrefix(p.Spec.NodeName, f.ns+"-"))
		}
	}
	slices.Sort(names)
	return names
}

// The canary is updated first and bakes, then one zone, which bakes too, then
// the other.
func TestCanaryThenZonesWithBake(t *testing.T) {
	f := newField(t)
	f.join("a1", labelled("zone", "a"))
	f.join("a2", labelled("zone", "a"))
	f.join("b1", labelled("zone", "b"))
	f.join("b2", labelled("zone", "b", "canary", "yes"))
	f.create(f.daemon("d", rolling("100%", "0"), annotated(
		daemonset.CanaryKey, "canary=yes", daemonset.OrderByKey, "zone", daemonset.BakeKey, "2s")))
	f.untilReady("d", 4)
	f.change("d", image("example.org/daemon:2"))
	for _, c := range []struct {
		says  string
		nodes string
	}{
		{"zone=a waits", "[b2]"},
		{"zone=b waits", "[a1 a2 b2]"},
	} {
		ds := f.untilStatus("d", "baking: "+c.says, func(ds *appsv1.DaemonSet) bool {
			p := conditionOf(ds, daemonset.Progressing)
			return p.Reason == daemonset.Baking && strings.Contains(p.Message, c.says)
		})
		if got := fmt.Sprint(f.made("example.org/daemon:2")); got != c.nodes {
			t.Errorf("%s: updated are %s, not %s", conditionOf(ds, daemonset.Progressing).Message, got, c.nodes)
		}
	}
	f.untilReady("d", 4)
	f.untilCondition("d", daemonset.Progressing, daemonset.UpdateComplete)
	// What the pods say: the canary was ready 2 s before zone a was touched.
	made, ready := map[string]time.Time{}, map[string]time.Time{}
	for _, p := range f.pods() {
		node := strings.TrimPrefix(p.Spec.NodeName, f.ns+"-")
		made[node], ready[node] = p.CreationTimestamp.Time, daemonset.Observe(&p).ReadySince
	}
	for _, pair := range [][2]string{{"b2", "a1"}, {"b2", "a2"}, {"a1", "b1"}, {"a2", "b1"}} {
		// Both are cut to seconds.
		if d := made[pair[1]].Sub(ready[pair[0]]); d < 2*time.Second {
			t.Errorf("%s was updated %v after %s was ready", pair[1], d, pair[0])
		}
	}
}

// The controllers die in the middle of each zone; the order and the baking hold.
func TestOrderSurvivesTheControllers(t *testing.T) {
	f := newField(t)
	zones := []string{"a", "b", "c"}
	for i := range 9 {
		f.join(fmt.Sprintf("n%d", i), labelled("zone", zones[i%3]))
	}
	f.create(f.daemon("d", annotated(daemonset.OrderByKey, "zone", daemonset.BakeKey, "2s")))
	f.untilReady("d", 9)
	b := f.watchBudget(9)
	f.change("d", image("example.org/daemon:2"))
	for _, n := range []int32{2, 3, 5, 8} {
		f.untilStatus("d", fmt.Sprintf("%d updated", n), func(ds *appsv1.DaemonSet) bool { return ds.Status.UpdatedNumberScheduled >= n })
		(*killControllers.Load())()
	}
	f.untilReady("d", 9)
	if down, _ := b.worst(); down > 1 {
		t.Errorf("%d nodes were down at once", down)
	}
	first, last := map[string]time.Time{}, map[string]time.Time{}
	for _, p := range f.pods() {
		var n int
		if _, err := fmt.Sscanf(p.Spec.NodeName, f.ns+"-n%d", &n); err != nil {
			t.Fatal(err)
		}
		zone := zones[n%3]
		if made := p.CreationTimestamp.Time; first[zone].IsZero() || made.Before(first[zone]) {
			first[zone] = made
		}
		if ready := daemonset.Observe(&p).ReadySince; ready.After(last[zone]) {
			last[zone] = ready
		}
	}
	for i := 1; i < len(zones); i++ {
		if d := first[zones[i]].Sub(last[zones[i-1]]); d < 2*time.Second {
			t.Errorf("zone %s was begun %v after zone %s was ready", zones[i], d, zones[i-1])
		}
	}
}

// A paused DaemonSet is not updated, and a pod that goes meanwhile comes back
// with its old revision. A partition keeps the last nodes.
func TestPausedThenPartition(t *testing.T) {
	f := newField(t)
	for i := range 4 {
		f.join(fmt.Sprintf("n%d", i))
	}
	f.create(f.daemon("d", annotated(daemonset.PausedKey, "true")))
	f.untilReady("d", 4)
	f.change("d", image("example.org/daemon:2"))
	f.untilStatus("d", "paused", func(ds *appsv1.DaemonSet) bool {
		p := conditionOf(ds, daemonset.Progressing)
		return ds.Status.ObservedGeneration == ds.Generation && p.Reason == daemonset.Paused && p.Status == corev1.ConditionUnknown &&
			ds.Status.UpdatedNumberScheduled == 0
	})
	// Nor does a controller that starts anew, which has not seen the pod.
	(*killControllers.Load())()
	gone := f.pods()[0]
	if err := client.CoreV1().Pods(f.ns).Delete(f.ctx, gone.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("another pod of the old revision", func(pods []corev1.Pod) bool {
		for _, p := range pods {
			if p.Spec.NodeName == gone.Spec.NodeName && p.UID != gone.UID {
				return p.Spec.Containers[0].Image == "example.org/daemon:1" &&
					p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == gone.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
			}
		}
		return false
	})
	f.change("d", annotated(daemonset.PausedKey, "false", daemonset.PartitionKey, "50%"))
	f.untilCondition("d", daemonset.Progressing, daemonset.PartitionReached)
	if got := fmt.Sprint(f.made("example.org/daemon:2")); got != "[n0 n1]" {
		t.Errorf("updated are %s", got)
	}
	f.change("d", annotated(daemonset.PartitionKey, "0"))
	f.untilReady("d", 4)
	f.untilCondition("d", daemonset.Progressing, daemonset.UpdateComplete)
}

// An update that makes no progress is told; once it makes some it goes on.
func TestDeadline(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.join("n2")
	f.create(f.daemon("d", annotated(daemonset.DeadlineKey, "2s")))
	f.untilReady("d", 2)
	f.setHold("broken", true)
	f.change("d", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Labels["hold"] = "broken" })
	ds := f.untilCondition("d", daemonset.Progressing, daemonset.ProgressDeadlineExceeded)
	if c := conditionOf(ds, daemonset.Progressing); c.Status != corev1.ConditionFalse || !strings.Contains(c.Message, "1 unavailable") {
		t.Errorf("%+v", c)
	}
	if c := conditionOf(ds, daemonset.Degraded); c.Status != corev1.ConditionTrue {
		t.Errorf("%+v", c)
	}
	// A controller that starts anew says the same.
	(*killControllers.Load())()
	f.setHold("broken", false)
	f.untilReady("d", 2)
	f.untilCondition("d", daemonset.Progressing, daemonset.UpdateComplete)
	f.untilCondition("d", daemonset.Degraded, "AsExpected")
}

// An update that fails is rolled back, once; asked for again it fails and
// stays.
func TestRollback(t *testing.T) {
	f := newField(t)
	for i := range 3 {
		f.join(fmt.Sprintf("n%d", i))
	}
	f.create(f.daemon("d", annotated(daemonset.DeadlineKey, "2s", daemonset.OnFailureKey, "rollback")))
	f.untilReady("d", 3)
	f.setHold("broken", true)
	breaks := func(ds *appsv1.DaemonSet) { ds.Spec.Template.Labels["hold"] = "broken" }
	f.change("d", breaks)
	back := f.untilStatus("d", "rolled back and ready", func(ds *appsv1.DaemonSet) bool {
		return ds.Spec.Template.Labels["hold"] == "" && settled(ds, 3) && conditionOf(ds, daemonset.Degraded).Reason == daemonset.RolledBackReason
	})
	if back.Annotations[daemonset.RolledBackKey] == "" {
		t.Error("the rollback left no note")
	}
	if e := f.untilEvent("d", "RolledBack"); !strings.Contains(e.Message, "no progress") {
		t.Errorf("event: %s", e.Message)
	}
	f.change("d", breaks)
	ds := f.untilCondition("d", daemonset.Progressing, daemonset.ProgressDeadlineExceeded)
	if c := conditionOf(ds, daemonset.Progressing); !strings.Contains(c.Message, "rolled back once") {
		t.Errorf("%+v", c)
	}
	(*killControllers.Load())()
	f.setHold("broken", false)
	f.untilStatus("d", "the revision that was asked for again", func(ds *appsv1.DaemonSet) bool {
		return ds.Spec.Template.Labels["hold"] == "broken" && settled(ds, 3)
	})
}

// A node that was NotReady before the update stalls nothing and is updated when
// it returns.
func TestNotReadyNodeIsSkipped(t *testing.T) {
	f := newField(t)
	f.join("n1")
	lost := f.join("n2")
	f.join("n3")
	f.create(f.daemon("d"))
	f.untilReady("d", 3)
	f.setSilent(lost, true)
	f.untilStatus("d", "one node lost", func(ds *appsv1.DaemonSet) bool { return ds.Status.NumberReady == 2 })
	f.change("d", image("example.org/daemon:2"))
	ds := f.untilStatus("d", "all others updated", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.ObservedGeneration == ds.Generation && ds.Status.UpdatedNumberScheduled == 2 && ds.Status.NumberReady == 2 &&
			conditionOf(ds, daemonset.Progressing).Reason == daemonset.UpdateComplete
	})
	if c := conditionOf(ds, daemonset.Progressing); !strings.Contains(c.Message, "1 not ready and left for their return") {
		t.Errorf("%+v", c)
	}
	f.setSilent(lost, false)
	f.reportReady(lost, corev1.ConditionTrue)
	f.untilReady("d", 3)
}

// A node that states its runtime handlers and lacks the pod's is not eligible.
func TestRuntimeHandlers(t *testing.T) {
	f := newField(t)
	f.join("n1", func(n *corev1.Node) { n.Status.RuntimeHandlers = []corev1.NodeRuntimeHandler{{Name: "host"}} })
	f.join("n2", func(n *corev1.Node) {
		n.Status.RuntimeHandlers = []corev1.NodeRuntimeHandler{{Name: ""}, {Name: "kata"}}
	})
	f.join("n3")
	host := "host"
	f.create(f.daemon("plain"))
	f.create(f.daemon("onhost", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.RuntimeClassName = &host }))
	f.untilReady("plain", 2)
	f.untilReady("onhost", 2)
	for _, p := range f.pods() {
		if (p.Labels["app"] == "plain") == (p.Spec.NodeName == f.node("n1")) && p.Spec.NodeName != f.node("n3") {
			t.Errorf("pod %s is on %s", p.Name, p.Spec.NodeName)
		}
	}
}
