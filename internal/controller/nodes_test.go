package controller_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// patchNode changes a node as a person would.
func (f *field) patchNode(full, patch string) {
	f.Helper()
	if _, err := client.CoreV1().Nodes().Patch(f.ctx, full, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		f.Fatal(err)
	}
}

// untilNode waits for a state of a node, from a watch.
func (f *field) untilNode(full, what string, ok func(*corev1.Node) bool) *corev1.Node {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	var last *corev1.Node
	for ctx.Err() == nil {
		w, err := client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + full})
		if err != nil {
			break
		}
		for e := range w.ResultChan() {
			node, is := e.Object.(*corev1.Node)
			if !is {
				continue
			}
			if last = node; ok(node) {
				w.Stop()
				return node
			}
		}
	}
	f.Fatalf("node %s: %s did not come about: %+v", full, what, last)
	return nil
}

func taints(node *corev1.Node) string {
	s := ""
	for _, t := range node.Spec.Taints {
		s += fmt.Sprintf("%s:%s ", t.Key, t.Effect)
	}
	return s
}

func TestLabelsMoveDaemons(t *testing.T) {
	f := newField(t)
	n1, n2 := f.join("n1"), f.join("n2")
	f.create(f.daemon("d", func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector["role"] = f.ns }))
	f.untilStatus("d", "nothing to do", func(ds *appsv1.DaemonSet) bool { return settled(ds, 0) })
	f.patchNode(n1, `{"metadata":{"labels":{"role":"`+f.ns+`"}}}`)
	f.untilReady("d", 1)
	f.patchNode(n2, `{"metadata":{"labels":{"role":"`+f.ns+`"}}}`)
	f.untilReady("d", 2)
	f.patchNode(n1, `{"metadata":{"labels":{"role":null}}}`)
	f.untilReady("d", 1)
	f.untilPods("the pod of n1 gone", func(pods []corev1.Pod) bool { return len(pods) == 1 && pods[0].Spec.NodeName == n2 })
}

func TestTaints(t *testing.T) {
	f := newField(t)
	n1, n2 := f.join("n1"), f.join("n2")
	f.patchNode(n2, `{"spec":{"taints":[{"key":"dedicated","effect":"NoSchedule"}]}}`)
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	// A running pod stays under NoSchedule, and counts as misscheduled.
	pod := f.pods()[0]
	f.patchNode(n1, `{"spec":{"taints":[{"key":"dedicated","effect":"NoSchedule"}]}}`)
	f.untilStatus("d", "one misscheduled", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.NumberMisscheduled == 1 && ds.Status.DesiredNumberScheduled == 0
	})
	if pods := f.pods(); len(pods) != 1 || pods[0].UID != pod.UID || pods[0].DeletionTimestamp != nil {
		t.Errorf("the pod did not stay: %s", brief(pods))
	}
	f.patchNode(n1, `{"spec":{"taints":[{"key":"dedicated","effect":"NoExecute"}]}}`)
	f.untilPods("no pod", func(pods []corev1.Pod) bool { return len(pods) == 0 })
	// A toleration brings daemons to both.
	f.change("d", func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpExists}}
	})
	f.untilReady("d", 2)
}

// Cordoned nodes run daemons.
func TestCordonedNode(t *testing.T) {
	f := newField(t)
	n := f.join("n1")
	f.patchNode(n, `{"spec":{"unschedulable":true}}`)
	f.untilNode(n, "the taint of a cordon", func(n *corev1.Node) bool { return taints(n) == "node.kubernetes.io/unschedulable:NoSchedule " })
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	f.patchNode(n, `{"spec":{"unschedulable":false}}`)
	f.untilNode(n, "no taint", func(n *corev1.Node) bool { return taints(n) == "" })
}

// A node that says it is not ready keeps its daemons; its taints come and go
// with what it says.
func TestNotReadyNode(t *testing.T) {
	f := newField(t)
	n := f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	pod := f.pods()[0]
	f.reportReady(n, corev1.ConditionFalse)
	f.untilNode(n, "not-ready taints", func(n *corev1.Node) bool {
		return taints(n) == "node.kubernetes.io/not-ready:NoSchedule node.kubernetes.io/not-ready:NoExecute "
	})
	f.untilStatus("d", "misscheduled", func(ds *appsv1.DaemonSet) bool { return ds.Status.NumberMisscheduled == 1 })
	f.reportReady(n, corev1.ConditionTrue)
	f.untilReady("d", 1)
	if got := f.pods(); len(got) != 1 || got[0].UID != pod.UID {
		t.Errorf("the pod was replaced: %s", brief(got))
	}
}

// A node whose Lease stops becomes Unknown, its pods not ready; all of it is
// undone when it returns.
func TestSilentNode(t *testing.T) {
	f := newField(t)
	n := f.join("n1")
	f.create(f.daemon("d"))
	f.untilReady("d", 1)
	plain, err := client.CoreV1().Pods(f.ns).Create(f.ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "plain"},
		Spec: corev1.PodSpec{
			NodeName: n, Containers: []corev1.Container{{Name: "c", Image: "x"}},
			Tolerations: []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.untilPods("both running", func(pods []corev1.Pod) bool {
		return len(pods) == 2 && pods[0].Status.Phase == corev1.PodRunning && pods[1].Status.Phase == corev1.PodRunning
	})
	f.setSilent(n, true)
	began := time.Now()
	f.untilNode(n, "Unknown", func(n *corev1.Node) bool {
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == corev1.ConditionUnknown && taints(n) == "node.kubernetes.io/unreachable:NoSchedule node.kubernetes.io/unreachable:NoExecute "
			}
		}
		return false
	})
	t.Logf("Unknown after %v, the grace is %v", time.Since(began), nodeGrace)
	f.untilPods("the daemon not ready, the plain pod evicted", func(pods []corev1.Pod) bool {
		daemonDown, plainGoing := false, true
		for _, p := range pods {
			if p.UID == plain.UID {
				plainGoing = p.DeletionTimestamp != nil
				continue
			}
			for _, c := range p.Status.Conditions {
				daemonDown = daemonDown || c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse
			}
			if p.DeletionTimestamp != nil {
				t.Errorf("the daemon's pod was evicted")
			}
		}
		return daemonDown && plainGoing
	})
	f.setSilent(n, false)
	began = time.Now()
	f.reportReady(n, corev1.ConditionTrue)
	f.untilNode(n, "no taint", func(n *corev1.Node) bool { return taints(n) == "" })
	t.Logf("taints gone %v after the node said it is ready", time.Since(began))
}

func TestPodsOfAGoneNode(t *testing.T) {
	f := newField(t)
	n1, n2 := f.join("n1"), f.join("n2")
	f.create(f.daemon("d"))
	f.untilReady("d", 2)
	f.setSilent(n1, true)
	// One that is being deleted already would wait for ever for its agent.
	for _, p := range f.pods() {
		if p.Spec.NodeName == n1 {
			if err := client.CoreV1().Pods(f.ns).Delete(f.ctx, p.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := client.CoreV1().Nodes().Delete(f.ctx, n1, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("one pod", func(pods []corev1.Pod) bool { return len(pods) == 1 && pods[0].Spec.NodeName == n2 })
	f.untilReady("d", 1)
}

// A pod that does not fit is not made; the reason is said, and it is made when
// there is room.
func TestPodThatDoesNotFit(t *testing.T) {
	f := newField(t)
	n := f.join("n1")
	half := func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("3")}
	}
	f.create(f.daemon("first", half))
	f.untilReady("first", 1)
	f.create(f.daemon("second", half))
	event := f.untilEvent("second", "FailedPlacement")
	t.Log(event.Message)
	f.untilStatus("second", "wanted and not there", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.DesiredNumberScheduled == 1 && ds.Status.CurrentNumberScheduled == 0 && ds.Status.NumberUnavailable == 1
	})
	if got := nodesOf(f.pods())[n]; got != 1 {
		t.Errorf("%d pods on the node", got)
	}
	if err := client.AppsV1().DaemonSets(f.ns).Delete(f.ctx, "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilReady("second", 1)
}

func TestHostPortsConflict(t *testing.T) {
	f := newField(t)
	f.join("n1")
	port := func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Spec.HostNetwork = true
		ds.Spec.Template.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 9100}}
	}
	f.create(f.daemon("first", port))
	f.untilReady("first", 1)
	f.create(f.daemon("second", port))
	t.Log(f.untilEvent("second", "FailedPlacement").Message)
	// Its own update is not in its own way.
	f.change("first", image("example.org/daemon:2"))
	f.untilStatus("first", "updated", func(ds *appsv1.DaemonSet) bool { return settled(ds, 1) })
}
