package upstream

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// eachStrategy runs a case with pods replaced on deletion and one by one.
func eachStrategy(t *testing.T, test func(f *field, strategy func(*appsv1.DaemonSet))) {
	t.Parallel()
	t.Run("OnDelete", func(t *testing.T) { test(newField(t), func(*appsv1.DaemonSet) {}) })
	t.Run("RollingUpdate", func(t *testing.T) { test(newField(t), rolling(1, 0)) })
}

func TestOneNode(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy))
		f.join("only")
		f.allReady(1)
	})
}

func TestManyNodes(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy))
		f.joinN(5)
		f.allReady(5)
	})
}

func TestEndedPodIsReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		phase     corev1.PodPhase
		finalizer bool
	}{
		"Succeeded":           {phase: corev1.PodSucceeded},
		"Failed":              {phase: corev1.PodFailed},
		"SucceededFinalizer":  {phase: corev1.PodSucceeded, finalizer: true},
		"FailedWithFinalizer": {phase: corev1.PodFailed, finalizer: true},
	} {
		t.Run(name, func(t *testing.T) {
			eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
				f.create(f.daemon(strategy, func(ds *appsv1.DaemonSet) {
					if c.finalizer {
						ds.Spec.Template.ObjectMeta.Finalizers = []string{"example.org/hold"}
					}
				}))
				f.joinN(3)
				f.allReady(3)
				ended := f.cached()[0]
				f.patchStatus(ended, corev1.PodStatus{Phase: c.phase})
				f.serving = true
				f.until("three running pods, none of them the ended one", func() bool {
					ready := 0
					for _, p := range f.cached() {
						if p.UID != ended.UID && podutil.IsPodReady(p) && p.DeletionTimestamp == nil {
							ready++
						}
					}
					return ready == 3
				})
				f.status("three ready", func(s appsv1.DaemonSetStatus) bool { return s.NumberReady == 3 })
			})
		})
	}
}

func TestNodeAffinity(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy, func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.NodeSelector = nil
			ds.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
					{MatchExpressions: []corev1.NodeSelectorRequirement{
						{Key: "zone", Operator: corev1.NodeSelectorOpIn, Values: []string{f.ns}},
					}},
					{MatchFields: []corev1.NodeSelectorRequirement{
						{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{f.node("n1")}},
					}},
				}},
			}}
		}))
		f.joinN(2)
		for i := range 2 {
			f.join(fmt.Sprintf("zoned%d", i), func(n *corev1.Node) { n.Labels["zone"] = f.ns })
		}
		f.join("other")
		f.allReady(3)
		for _, p := range f.cached() {
			if p.Spec.NodeName == f.node("n0") || p.Spec.NodeName == f.node("other") {
				f.Errorf("pod %s is on %s, which nothing selects", p.Name, p.Spec.NodeName)
			}
		}
	})
}

func TestNotReadyNode(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy))
		f.join("down", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse })
		f.allReady(1)
	})
}

func TestNodeWithoutRoom(t *testing.T) {
	room := func(memory string) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Allocatable[corev1.ResourceMemory] = resource.MustParse(memory)
			n.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("2")
		}
	}
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy, func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
				corev1.ResourceMemory: resource.MustParse("120M"), corev1.ResourceCPU: resource.MustParse("75m"),
			}
		}))
		f.join("small", room("100M"))
		f.until("a pod that does not fit", func() bool {
			pods := f.cached()
			if len(pods) != 1 {
				return false
			}
			_, c := podutil.GetPodCondition(&pods[0].Status, corev1.PodScheduled)
			return c != nil && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable
		})
		f.join("large", room("200M"))
		f.serving = true
		f.status("one of two ready", func(s appsv1.DaemonSetStatus) bool {
			return s.NumberReady == 1 && s.DesiredNumberScheduled == 2 && s.CurrentNumberScheduled == 2
		})
		if n := len(f.live()); n != 2 {
			f.Errorf("there are %d pods, want 2", n)
		}
	})
}

func TestHashCollides(t *testing.T) {
	f := newField(t)
	f.join("only")
	ds := f.create(f.daemon(rolling(1, 0)))
	first := f.untilRevision(ds)
	grace := int64(1)
	edit := func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.TerminationGracePeriodSeconds = &grace }
	next := ds.DeepCopy()
	edit(next)
	// A revision of another template has the name that the next one will want.
	f.fakeRevision(ds, first, f.hash(next))
	f.change(edit)
	f.serving = true
	f.until("a pod of the new template", func() bool {
		for _, p := range f.cached() {
			if *p.Spec.TerminationGracePeriodSeconds == grace {
				return true
			}
		}
		return false
	})
	f.status("one collision", func(s appsv1.DaemonSetStatus) bool { return s.CollisionCount != nil && *s.CollisionCount == 1 })
}

func TestDuplicateRevisionTakesOver(t *testing.T) {
	f := newField(t)
	f.join("first")
	ds := f.create(f.daemon(rolling(1, 0)))
	first := f.untilRevision(ds)
	f.until("a pod", func() bool { return len(f.cached()) == 1 })
	before := f.cached()[0].UID
	other := ds.DeepCopy()
	grace := int64(1)
	other.Spec.Template.Spec.TerminationGracePeriodSeconds = &grace
	hash := f.hash(other)
	f.fakeRevision(ds, first, hash)
	f.join("second")
	f.until("pods labelled with the later of the equal revisions", func() bool {
		pods := f.cached()
		for _, p := range pods {
			if p.Labels[hashLabel] != hash {
				return false
			}
		}
		return len(pods) == 2
	})
	f.until("one revision", func() bool {
		r := f.revisions.List()
		return len(r) == 1 && r[0].(*appsv1.ControllerRevision).Labels[hashLabel] == hash
	})
	for _, p := range f.cached() {
		if p.UID == before {
			return
		}
	}
	f.Error("the first pod was replaced, not labelled")
}

// untilRevision waits for the only revision of a DaemonSet.
func (f *field) untilRevision(ds *appsv1.DaemonSet) *appsv1.ControllerRevision {
	f.Helper()
	var r *appsv1.ControllerRevision
	f.until("a revision", func() bool {
		for _, obj := range f.revisions.List() {
			r = obj.(*appsv1.ControllerRevision)
			return metav1.IsControlledBy(r, ds)
		}
		return false
	})
	if want := "d-" + f.hash(ds); r.Name != want {
		f.Errorf("the revision is named %s, upstream names it %s", r.Name, want)
	}
	return r
}

// fakeRevision makes a later revision of the same data under another hash.
func (f *field) fakeRevision(ds *appsv1.DaemonSet, r *appsv1.ControllerRevision, hash string) {
	f.Helper()
	fake := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name: "d-" + hash, Namespace: f.ns,
			Labels:          map[string]string{"app": "d", hashLabel: hash},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(ds, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))},
		},
		Data: r.Data, Revision: r.Revision + 1,
	}
	if _, err := client.AppsV1().ControllerRevisions(f.ns).Create(f.ctx, fake, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
}

func TestTaintedNode(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy))
		f.join("tainted", taint("k", corev1.TaintEffectNoSchedule))
		f.join("plain")
		f.allReady(1)
		f.changeNode("tainted", func(n *corev1.Node) { n.Spec.Taints = nil })
		f.allReady(2)
	})
}

func TestTolerableNodes(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy, func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.HostNetwork = true }))
		f.join("cordoned", taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule), func(n *corev1.Node) {
			n.Spec.Unschedulable = true
		})
		f.join("cut-off", taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule), func(n *corev1.Node) {
			n.Status.Conditions = []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionFalse},
				{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue},
			}
		})
		f.allReady(2)
	})
}

func TestStatusDespiteRefusedPods(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		two := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")}
		quota, err := client.CoreV1().ResourceQuotas(f.ns).Create(f.ctx, &corev1.ResourceQuota{
			ObjectMeta: metav1.ObjectMeta{Name: "two"}, Spec: corev1.ResourceQuotaSpec{Hard: two},
		}, metav1.CreateOptions{})
		if err != nil {
			f.Fatal(err)
		}
		// What the controller of quotas would write.
		quota.Status = corev1.ResourceQuotaStatus{Hard: two, Used: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}}
		if _, err := client.CoreV1().ResourceQuotas(f.ns).UpdateStatus(f.ctx, quota, metav1.UpdateOptions{}); err != nil {
			f.Fatal(err)
		}
		f.create(f.daemon(strategy))
		f.joinN(5)
		f.serving = true
		f.status("two of five ready", func(s appsv1.DaemonSetStatus) bool {
			return s.NumberReady == 2 && s.CurrentNumberScheduled == 2 && s.DesiredNumberScheduled == 5
		})
	})
}

func TestUpdateMovesTolerations(t *testing.T) {
	f := newField(t)
	for i, zone := range []string{"y", "y", "z", "z", "common", "common"} {
		f.join(fmt.Sprintf("n%d-%s", i, zone), taint("zone-"+zone, corev1.TaintEffectNoSchedule))
	}
	tolerate := func(zones ...string) func(*appsv1.DaemonSet) {
		return func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Tolerations = nil
			for _, z := range zones {
				ds.Spec.Template.Spec.Tolerations = append(ds.Spec.Template.Spec.Tolerations,
					corev1.Toleration{Key: "zone-" + z, Operator: corev1.TolerationOpExists})
			}
		}
	}
	updated := func(n int) {
		f.Helper()
		f.serving = true
		f.status(fmt.Sprintf("%d updated", n), func(s appsv1.DaemonSetStatus) bool { return int(s.UpdatedNumberScheduled) == n })
		f.allReady(n)
	}
	f.create(f.daemon(rolling(0, 1), tolerate("y", "common")))
	updated(4)

	// The pods on y, where they may not be made now, stay until the new ones
	// are available: two on z, and one above the old one on a common node.
	f.change(tolerate("z", "common"))
	f.until("seven pods", func() bool { return len(f.cached()) == 7 })
	f.quiet()
	if n := len(f.live()); n != 7 {
		f.Errorf("there are %d pods, want 7\n%s", n, f.picture())
	}
	updated(4)

	f.change(tolerate("y", "z", "common"))
	f.until("seven pods", func() bool { return len(f.cached()) == 7 })
	updated(6)

	f.change(tolerate())
	updated(0)
}
