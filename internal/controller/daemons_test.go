package controller_test

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestCoversNodes(t *testing.T) {
	f := newField(t)
	n1, n2 := f.join("n1"), f.join("n2")
	f.create(f.daemon("d"))
	f.untilReady("d", 2)
	n3 := f.join("n3")
	began := time.Now()
	f.untilReady("d", 3)
	t.Logf("covered and ready %v after the node joined", time.Since(began))
	pods := f.pods()
	for _, n := range []string{n1, n2, n3} {
		if got := nodesOf(pods)[n]; got != 1 {
			t.Errorf("%d pods on %s", got, n)
		}
	}
	p := pods[0]
	if owner := metav1.GetControllerOf(&p); owner == nil || owner.Kind != "DaemonSet" || owner.Name != "d" {
		t.Errorf("owner %v", owner)
	}
	terms := p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	if len(terms) != 1 || terms[0].MatchFields[0].Values[0] != p.Spec.NodeName {
		t.Errorf("affinity %v, node %s", terms, p.Spec.NodeName)
	}
	if p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == "" || p.Labels["pod-template-generation"] != "1" {
		t.Errorf("labels %v", p.Labels)
	}
	f.untilEvent("d", "SuccessfulCreate")
}

func TestHeals(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	first := f.pods()[0]
	if err := client.CoreV1().Pods(f.ns).Delete(f.ctx, first.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("a new pod", func(pods []corev1.Pod) bool {
		return len(pods) == 1 && pods[0].UID != first.UID && pods[0].Status.Phase == corev1.PodRunning
	})
	second := f.pods()[0]
	f.setPod(second.Name, corev1.PodFailed, false)
	f.untilPods("a new pod after one failed", func(pods []corev1.Pod) bool {
		return len(pods) == 1 && pods[0].UID != second.UID && pods[0].Status.Phase == corev1.PodRunning
	})
	f.untilEvent("d", "FailedDaemonPod")
	third := f.pods()[0]
	f.setPod(third.Name, corev1.PodSucceeded, false)
	f.untilPods("a new pod after one ended", func(pods []corev1.Pod) bool {
		return len(pods) == 1 && pods[0].UID != third.UID && pods[0].Status.Phase == corev1.PodRunning
	})
	f.untilEvent("d", "SucceededDaemonPod")
	f.untilReady("d", 1)
}

// Adoption and release follow the labels; what belongs to others is left alone.
func TestAdoptsAndReleases(t *testing.T) {
	f := newField(t)
	n := f.join("n1")
	foreign := metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "c", Controller: new(bool)}
	*foreign.Controller = true
	cm, err := client.CoreV1().ConfigMaps(f.ns).Create(f.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	foreign.UID = cm.UID
	bare := func(name string, owners ...metav1.OwnerReference) *corev1.Pod {
		pod, err := client.CoreV1().Pods(f.ns).Create(f.ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "d"}, OwnerReferences: owners},
			Spec:       corev1.PodSpec{NodeName: n, Containers: []corev1.Container{{Name: "c", Image: "x"}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	theirs := bare("theirs", foreign)
	orphan := bare("orphan")
	f.create(f.daemon("d", onDelete))
	f.untilPods("the orphan adopted, nothing made", func(pods []corev1.Pod) bool {
		for _, p := range pods {
			if owner := metav1.GetControllerOf(&p); p.UID == orphan.UID && owner != nil && owner.Name == "d" {
				return len(pods) == 2
			}
		}
		return false
	})
	f.untilStatus("d", "one pod", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.CurrentNumberScheduled == 1 && ds.Status.UpdatedNumberScheduled == 0
	})
	if _, err := client.CoreV1().Pods(f.ns).Patch(f.ctx, "orphan", types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"debug"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("the pod released and one made", func(pods []corev1.Pod) bool {
		released, kept := false, false
		for _, p := range pods {
			released = released || p.UID == orphan.UID && metav1.GetControllerOf(&p) == nil
			kept = kept || p.UID == theirs.UID && p.DeletionTimestamp == nil
		}
		return released && kept && len(pods) == 3
	})
}

// Of several pods on a node the oldest stays.
func TestOldestStays(t *testing.T) {
	f := newField(t)
	n := f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	first := f.pods()[0]
	extra := first.DeepCopy()
	extra.ObjectMeta = metav1.ObjectMeta{Name: "zz-extra", Labels: first.Labels, OwnerReferences: first.OwnerReferences}
	extra.Status = corev1.PodStatus{}
	extra.Spec.NodeName = n
	if _, err := client.CoreV1().Pods(f.ns).Create(f.ctx, extra, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilEvent("d", "SuccessfulDelete")
	f.untilPods("the first pod alone", func(pods []corev1.Pod) bool { return len(pods) == 1 && pods[0].UID == first.UID })
}

// The pods of a DaemonSet deleted with --cascade=orphan stay and are adopted by
// the next one.
func TestCascadeOrphan(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	pod := f.pods()[0]
	how := metav1.DeletePropagationOrphan
	if err := client.AppsV1().DaemonSets(f.ns).Delete(f.ctx, "d", metav1.DeleteOptions{PropagationPolicy: &how}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("an orphan", func(pods []corev1.Pod) bool { return len(pods) == 1 && metav1.GetControllerOf(&pods[0]) == nil })
	f.untilGone("d")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	if pods := f.pods(); len(pods) != 1 || pods[0].UID != pod.UID {
		t.Errorf("the pod was not kept: %s", brief(pods))
	}
}

// Deleting a DaemonSet takes its pods along.
func TestDeletion(t *testing.T) {
	f := newField(t)
	f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	how := metav1.DeletePropagationForeground
	if err := client.AppsV1().DaemonSets(f.ns).Delete(f.ctx, "d", metav1.DeleteOptions{PropagationPolicy: &how}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("no pod", func(pods []corev1.Pod) bool { return len(pods) == 0 })
}

// The status is written although no pod can be made; one event says why, and
// the rest of the nodes is not tried.
func TestStatusDespiteFailedCreates(t *testing.T) {
	f := newField(t)
	for _, n := range []string{"n1", "n2", "n3"} {
		f.join(n)
	}
	// There is no such service account, and admission refuses pods without.
	f.create(f.daemon("d", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.ServiceAccountName = "nobody" }))
	f.untilEvent("d", "FailedCreate")
	f.untilStatus("d", "3 wanted, none there", func(ds *appsv1.DaemonSet) bool {
		s := ds.Status
		return s.ObservedGeneration == ds.Generation && s.DesiredNumberScheduled == 3 && s.CurrentNumberScheduled == 0 && s.NumberUnavailable == 3
	})
	if _, err := client.CoreV1().ServiceAccounts(f.ns).Create(f.ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilReady("d", 3)
}

// TestHundredNodes measures; the bound is loose, since the machine may be busy.
func TestHundredNodes(t *testing.T) {
	f := newField(t)
	const n = 100
	for i := range n {
		f.join(fmt.Sprintf("n%03d", i))
	}
	f.setHold("", true)
	began := time.Now()
	f.create(f.daemon("d", rolling("100%", "0")))
	f.untilStatus("d", "all bound", func(ds *appsv1.DaemonSet) bool { return ds.Status.CurrentNumberScheduled == n })
	t.Logf("%d nodes: all pods bound, and in the status, after %v", n, time.Since(began))
	f.setHold("", false)
	f.untilReady("d", n)
	began = time.Now()
	f.change("d", image("example.org/daemon:2"))
	f.untilReady("d", n)
	t.Logf("%d nodes: all replaced and ready after %v", n, time.Since(began))
}
