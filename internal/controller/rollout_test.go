package controller_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/polymorphichelpers"

	"legion.dev/legion/internal/daemonset"
)

var daemonSetGroupKind = schema.GroupKind{Group: "apps", Kind: "DaemonSet"}

// budget watches the pods of a test and notes the worst that was true at any
// event: nodes without an available pod, and nodes with two running ones.
type budget struct {
	f           *field
	nodes       int
	down, twice int
	stop        context.CancelFunc
	done        chan struct{}
}

func (f *field) watchBudget(nodes int) *budget {
	f.Helper()
	ctx, cancel := context.WithCancel(f.ctx)
	list, err := client.CoreV1().Pods(f.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	w, err := client.CoreV1().Pods(f.ns).Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		f.Fatal(err)
	}
	b := &budget{f: f, nodes: nodes, stop: cancel, done: make(chan struct{})}
	pods := map[types.UID]*corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].UID] = &list.Items[i]
	}
	go func() {
		defer close(b.done)
		for e := range w.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				if ctx.Err() == nil {
					f.Errorf("the watch of pods broke: %v", e.Object)
				}
				return
			}
			pods[pod.UID] = pod
			if e.Type == watch.Deleted {
				delete(pods, pod.UID)
			}
			b.count(pods)
		}
	}()
	return b
}

func (b *budget) count(pods map[types.UID]*corev1.Pod) {
	up, live := map[string]bool{}, map[string]int{}
	for _, p := range pods {
		o := daemonset.Observe(p)
		if o.Deleting {
			continue
		}
		live[p.Spec.NodeName]++
		if o.Ready {
			up[p.Spec.NodeName] = true
		}
	}
	twice := 0
	for _, n := range live {
		if n > 1 {
			twice++
		}
	}
	b.down, b.twice = max(b.down, b.nodes-len(up)), max(b.twice, twice)
}

// worst ends the watch.
func (b *budget) worst() (down, twice int) {
	b.stop()
	<-b.done
	return b.down, b.twice
}

func image(name string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = name }
}

func rolling(unavailable, surge string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) {
		u, s := intstr.Parse(unavailable), intstr.Parse(surge)
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
			Type:          appsv1.RollingUpdateDaemonSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &u, MaxSurge: &s},
		}
	}
}

func onDelete(ds *appsv1.DaemonSet) {
	ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
}

func TestRollingUpdateKeepsItsBudget(t *testing.T) {
	for _, c := range []struct {
		unavailable, surge string
		down, twice        int
	}{
		{"1", "0", 1, 0},
		{"2", "0", 2, 0},
		{"35%", "0", 3, 0}, // 2.8 of 8
		{"0", "1", 0, 1},
		{"0", "25%", 0, 2},
	} {
		t.Run(c.unavailable+" and "+c.surge, func(t *testing.T) {
			f := newField(t)
			for i := range 8 {
				f.join(fmt.Sprintf("n%d", i))
			}
			f.create(f.daemon("d", rolling(c.unavailable, c.surge)))
			f.untilReady("d", 8)
			b := f.watchBudget(8)
			f.change("d", image("example.org/daemon:2"))
			f.untilReady("d", 8)
			down, twice := b.worst()
			if down > c.down || twice > c.twice {
				t.Errorf("%d nodes were down at once, %d had two pods; allowed are %d and %d", down, twice, c.down, c.twice)
			}
			if down+twice == 0 {
				t.Error("the watch saw nothing of the update")
			}
			for _, p := range f.pods() {
				if p.DeletionTimestamp == nil && p.Spec.Containers[0].Image != "example.org/daemon:2" {
					t.Errorf("pod %s runs %s", p.Name, p.Spec.Containers[0].Image)
				}
			}
		})
	}
}

// A new revision that does not get ready stops the update at the budget, and a
// third one replaces the broken pods first.
func TestBrokenUpdateStops(t *testing.T) {
	f := newField(t)
	for i := range 5 {
		f.join(fmt.Sprintf("n%d", i))
	}
	f.create(f.daemon("d", rolling("2", "0")))
	good := f.untilReady("d", 5)
	f.setHold("broken", true)
	b := f.watchBudget(5)
	f.change("d", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Labels["hold"] = "broken" })
	f.untilStatus("d", "2 updated, 3 available", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.ObservedGeneration > good.Generation && ds.Status.UpdatedNumberScheduled == 2 && ds.Status.NumberAvailable == 3 && ds.Status.NumberUnavailable == 2
	})
	f.change("d", func(ds *appsv1.DaemonSet) {
		delete(ds.Spec.Template.Labels, "hold")
		image("example.org/daemon:3")(ds)
	})
	f.untilReady("d", 5)
	if down, _ := b.worst(); down > 2 {
		t.Errorf("%d nodes were down, maxUnavailable is 2", down)
	}
}

// The controllers die in the middle of an update, three times; it goes on
// within its budget and ends.
func TestUpdateSurvivesTheControllers(t *testing.T) {
	for _, c := range []struct {
		unavailable, surge string
		down, twice        int
	}{{"1", "0", 1, 0}, {"0", "1", 0, 1}} {
		t.Run(c.unavailable+" and "+c.surge, func(t *testing.T) {
			f := newField(t)
			for i := range 12 {
				f.join(fmt.Sprintf("n%02d", i))
			}
			f.create(f.daemon("d", rolling(c.unavailable, c.surge)))
			f.untilReady("d", 12)
			b := f.watchBudget(12)
			f.change("d", image("example.org/daemon:2"))
			for _, n := range []int32{2, 5, 8} {
				f.untilStatus("d", fmt.Sprintf("%d updated", n), func(ds *appsv1.DaemonSet) bool { return ds.Status.UpdatedNumberScheduled >= n })
				(*killControllers.Load())()
			}
			f.untilReady("d", 12)
			if down, twice := b.worst(); down > c.down || twice > c.twice {
				t.Errorf("%d nodes were down at once, %d had two pods; allowed are %d and %d", down, twice, c.down, c.twice)
			}
			f.untilPods("12 pods", func(pods []corev1.Pod) bool { return len(pods) == 12 && len(nodesOf(pods)) == 12 })
		})
	}
}

func TestOnDelete(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.join("n2")
	f.create(f.daemon("d", onDelete))
	f.untilReady("d", 2)
	b := f.watchBudget(2)
	changed := f.change("d", image("example.org/daemon:2"))
	f.untilStatus("d", "nothing updated", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.ObservedGeneration == changed.Generation && ds.Status.UpdatedNumberScheduled == 0 && ds.Status.NumberReady == 2
	})
	if down, _ := b.worst(); down != 0 {
		t.Errorf("%d pods went without being asked", down)
	}
	if err := client.CoreV1().Pods(f.ns).Delete(f.ctx, f.pods()[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilStatus("d", "one updated", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.UpdatedNumberScheduled == 1 && ds.Status.NumberReady == 2
	})
}

func TestMinReadySeconds(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.create(f.daemon("d", func(ds *appsv1.DaemonSet) { ds.Spec.MinReadySeconds = 2 }))
	f.untilStatus("d", "ready and not available", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.NumberReady == 1 && ds.Status.NumberAvailable == 0 && ds.Status.NumberUnavailable == 1
	})
	began := time.Now()
	f.untilReady("d", 1)
	// The condition's time is cut to seconds.
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("available %v after ready", d)
	}
}

func (f *field) revisions(name string) map[int64]appsv1.ControllerRevision {
	f.Helper()
	list, err := client.AppsV1().ControllerRevisions(f.ns).List(f.ctx, metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	all := map[int64]appsv1.ControllerRevision{}
	for _, r := range list.Items {
		if owner := metav1.GetControllerOf(&r); owner != nil && owner.Name == name {
			all[r.Revision] = r
		}
	}
	return all
}

// untilRevisions waits for a set of revision numbers, from a watch.
func (f *field) untilRevisions(name, numbers string) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	var last []int64
	for ctx.Err() == nil {
		w, err := client.AppsV1().ControllerRevisions(f.ns).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			break
		}
		for range w.ResultChan() {
			last = last[:0]
			for n := int64(0); n < 100; n++ {
				if _, ok := f.revisions(name)[n]; ok {
					last = append(last, n)
				}
			}
			if fmt.Sprint(last) == numbers {
				w.Stop()
				return
			}
		}
	}
	f.Fatalf("the revisions of %s are %v, not %s", name, last, numbers)
}

// kubectl's own code reads the history, undoes, restarts and waits.
func TestKubectlRollout(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.join("n2")
	f.create(f.daemon("d"))
	f.untilReady("d", 2)
	f.change("d", func(ds *appsv1.DaemonSet) {
		image("example.org/daemon:2")(ds)
		ds.Annotations = map[string]string{polymorphichelpers.ChangeCauseAnnotation: "second"}
	})
	f.untilReady("d", 2)

	viewer, err := polymorphichelpers.HistoryViewerFor(daemonSetGroupKind, client)
	if err != nil {
		t.Fatal(err)
	}
	text, err := viewer.ViewHistory(f.ns, "d", 0)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "1 ") || !strings.Contains(text, "2 ") {
		t.Errorf("history: %s", text)
	}
	if text, err = viewer.ViewHistory(f.ns, "d", 1); err != nil || !strings.Contains(text, "example.org/daemon:1") {
		t.Errorf("revision 1: %v %s", err, text)
	}

	rollbacker, err := polymorphichelpers.RollbackerFor(daemonSetGroupKind, client)
	if err != nil {
		t.Fatal(err)
	}
	ds, err := client.AppsV1().DaemonSets(f.ns).Get(f.ctx, "d", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if text, err = rollbacker.Rollback(ds, nil, 0, util.DryRunNone); err != nil {
		t.Fatalf("undo: %v %s", err, text)
	}
	f.untilStatus("d", "rolled back", func(d *appsv1.DaemonSet) bool {
		return d.Spec.Template.Spec.Containers[0].Image == "example.org/daemon:1" && settled(d, 2)
	})
	// The old template came back as the highest revision.
	f.untilRevisions("d", "[2 3]")

	f.change("d", func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Annotations = map[string]string{"kubectl.kubernetes.io/restartedAt": "now"}
	})
	ds = f.untilReady("d", 2)
	f.untilRevisions("d", "[2 3 4]")

	status, err := polymorphichelpers.StatusViewerFor(daemonSetGroupKind)
	if err != nil {
		t.Fatal(err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(ds)
	if err != nil {
		t.Fatal(err)
	}
	text, done, err := status.Status(&unstructured.Unstructured{Object: content}, 0)
	if err != nil || !done {
		t.Errorf("rollout status: %q %v %v", text, done, err)
	}
}

func TestHistoryLimit(t *testing.T) {
	f := newField(t)
	f.join("n1")
	one := int32(1)
	f.create(f.daemon("d", func(ds *appsv1.DaemonSet) { ds.Spec.RevisionHistoryLimit = &one }))
	f.untilReady("d", 1)
	for i := 2; i <= 4; i++ {
		f.change("d", image(fmt.Sprintf("example.org/daemon:%d", i)))
		f.untilReady("d", 1)
	}
	f.untilRevisions("d", "[3 4]")
}

// A revision of another template that has the hash's name already makes the
// collision counter go up.
func TestHashCollision(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.create(f.daemon("d"))
	ds := f.untilReady("d", 1)
	next := ds.DeepCopy()
	image("example.org/daemon:2")(next)
	patch, err := daemonset.Patch(next)
	if err != nil {
		t.Fatal(err)
	}
	taken := daemonset.NewRevision(next, []byte(strings.ReplaceAll(string(patch), "daemon:2", "daemon:other")), 7)
	if _, err := client.AppsV1().ControllerRevisions(f.ns).Create(f.ctx, taken, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.change("d", image("example.org/daemon:2"))
	ds = f.untilReady("d", 1)
	if ds.Status.CollisionCount == nil || *ds.Status.CollisionCount != 1 {
		t.Errorf("collisionCount %v", ds.Status.CollisionCount)
	}
	if got := f.pods()[0].Labels[appsv1.DefaultDaemonSetUniqueLabelKey]; got == taken.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] {
		t.Errorf("the pods have the hash of another template: %s", got)
	}
}

// Two revisions of one template are merged; pods of the lower one are given
// the label of the other and stay.
func TestDuplicateRevisionsMerge(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	before := f.pods()[0]
	cur := f.revisions("d")[1]
	twin := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: cur.Name + "-twin", Namespace: f.ns, OwnerReferences: cur.OwnerReferences,
			Labels: map[string]string{"app": "d", appsv1.DefaultDaemonSetUniqueLabelKey: "twin"},
		},
		Data: cur.Data, Revision: 5,
	}
	if _, err := client.AppsV1().ControllerRevisions(f.ns).Create(f.ctx, twin, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.join("n2") // it is looked at with the next news
	f.untilRevisions("d", "[5]")
	merged := func(pods []corev1.Pod) bool {
		for i := range pods {
			if pods[i].Labels[appsv1.DefaultDaemonSetUniqueLabelKey] != "twin" {
				return false
			}
		}
		return len(pods) == 2
	}
	stays := func(pods []corev1.Pod) bool {
		return slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.UID == before.UID })
	}
	if !stays(f.untilPods("the label of the revision that stays", merged)) {
		t.Error("the pod was replaced")
	}
	f.untilReady("d", 2)
	// A pod that was under way with the hash that is gone, seen by a controller
	// that starts anew.
	(*killControllers.Load())()
	label := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, appsv1.DefaultDaemonSetUniqueLabelKey, cur.Labels[appsv1.DefaultDaemonSetUniqueLabelKey])
	if _, err := client.CoreV1().Pods(f.ns).Patch(f.ctx, before.Name, types.MergePatchType, []byte(label), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if !stays(f.untilPods("the label of the revision that stays, again", merged)) {
		t.Error("the pod was replaced after a restart")
	}
}
