package upstream

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The cases of upstream's daemon_controller_test.go that state what can be seen
// from outside and that no other test here states.

// slowToStop makes a pod that is deleted stay for a while.
func slowToStop(ds *appsv1.DaemonSet) {
	half := int64(1800)
	ds.Spec.Template.Spec.TerminationGracePeriodSeconds = &half
}

// remove deletes a pod as a person does.
func (f *field) remove(p *corev1.Pod) {
	f.Helper()
	if err := client.CoreV1().Pods(f.ns).Delete(f.ctx, p.Name, metav1.DeleteOptions{}); err != nil {
		f.Fatal(err)
	}
}

// stray makes a pod as the DaemonSet would, which belongs to nobody.
func (f *field) stray(ds *appsv1.DaemonSet, name string, with ...func(*corev1.Pod)) *corev1.Pod {
	f.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "d", hashLabel: f.hash(ds)}},
		Spec:       *ds.Spec.Template.Spec.DeepCopy(),
	}
	p.Spec.NodeSelector = nil
	for _, w := range with {
		w(p)
	}
	made, err := client.CoreV1().Pods(f.ns).Create(f.ctx, p, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return made
}

func (f *field) on(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeName = f.node(node) }
}

func labelled(app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{"app": app} }
}

// second returns another DaemonSet for the same nodes.
func (f *field) second(with ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	ds := f.daemon(with...)
	labels := map[string]string{"app": "e"}
	ds.Name, ds.Spec.Selector.MatchLabels, ds.Spec.Template.Labels = "e", labels, labels
	return ds
}

// ofApp counts, by node, the pods that are labelled so and stay.
func ofApp(app string, pods []*corev1.Pod) map[string]int {
	n := map[string]int{}
	for _, p := range pods {
		if p.Labels["app"] == app && p.DeletionTimestamp == nil {
			n[target(p)]++
		}
	}
	return n
}

func (f *field) liveOf(app string) map[string]int {
	f.Helper()
	var pods []*corev1.Pod
	for _, p := range f.live() {
		pods = append(pods, &p)
	}
	return ofApp(app, pods)
}

func TestPodsThatAreThereAlready(t *testing.T) {
	t.Parallel()
	selected := func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.NodeSelector["role"] = "daemons" }
	for strategy, how := range map[string]func(*appsv1.DaemonSet){
		"OnDelete": func(*appsv1.DaemonSet) {}, "RollingUpdate": rolling(1, 0), "Surge": rolling(0, 1),
	} {
		for name, c := range map[string]struct {
			selector func(*appsv1.DaemonSet)
			nodes    []string // that are to have a pod in the end
		}{
			"AllNodes":  {func(*appsv1.DaemonSet) {}, []string{"n0", "n1", "n2", "n3", "n4", "s0", "s1", "s2"}},
			"SomeNodes": {selected, []string{"s0", "s1", "s2"}},
		} {
			t.Run(strategy+name, func(t *testing.T) {
				f := newField(t)
				f.joinN(5)
				for i := range 3 {
					f.join(fmt.Sprintf("s%d", i), func(n *corev1.Node) { n.Labels["role"] = "daemons" })
				}
				ds := f.daemon(how, c.selector)
				had := f.leaveStrays(ds, map[string]int{"n1": 1, "n2": 2, "n3": 5, "s1": 4, "s2": 1})
				for i, node := range []string{"n4", "n4", "s2"} {
					f.stray(ds, fmt.Sprintf("other-%d", i), f.on(node), labelled("other"))
				}
				f.create(ds)
				right := func(n map[string]int) bool {
					for _, node := range c.nodes {
						if n[f.node(node)] != 1 {
							return false
						}
					}
					return len(n) == len(c.nodes)
				}
				f.until("one pod on each node that is selected", func() bool { return right(ofApp("d", f.cached())) })
				f.quiet()
				if n := f.liveOf("d"); !right(n) {
					f.Errorf("pods by node: %v", n)
				}
				if n := f.liveOf("other"); n[f.node("n4")] != 2 || n[f.node("s2")] != 1 {
					f.Errorf("pods of others by node: %v", n)
				}
				for _, p := range f.live() {
					if delete(had, p.UID); p.Labels["app"] == "d" && !metav1.IsControlledBy(&p, f.get("d")) {
						f.Errorf("pod %s was not adopted", p.Name)
					}
				}
				// Where there were pods, one of them was kept.
				if want := map[string]int{"AllNodes": 8, "SomeNodes": 11}[name]; len(had) != want {
					f.Errorf("%d pods went, want %d", len(had), want)
				}
			})
		}
	}
}

// leaveStrays makes so many pods on each node and returns their UIDs.
func (f *field) leaveStrays(ds *appsv1.DaemonSet, count map[string]int) map[types.UID]bool {
	f.Helper()
	uids := map[types.UID]bool{}
	for node, n := range count {
		for i := range n {
			uids[f.stray(ds, fmt.Sprintf("%s-%d", node, i), f.on(node)).UID] = true
		}
	}
	return uids
}

func (f *field) get(name string) *appsv1.DaemonSet {
	f.Helper()
	ds, err := client.AppsV1().DaemonSets(f.ns).Get(f.ctx, name, metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return ds
}

func TestFailedPodAmongOthers(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.join("only")
		ds := f.daemon(strategy)
		failed := f.stray(ds, "failed", f.on("only"))
		f.patchStatus(failed, corev1.PodStatus{Phase: corev1.PodFailed})
		had := map[types.UID]bool{}
		for i := range 3 {
			had[f.stray(ds, fmt.Sprint("running-", i), f.on("only")).UID] = true
		}
		f.create(ds)
		f.until("one pod", func() bool { return len(f.cached()) == 1 })
		f.quiet()
		if pods := f.live(); len(pods) != 1 || !had[pods[0].UID] {
			f.Errorf("want one of the pods that did not fail\n%s", f.picture())
		}
	})
}

// none waits until the DaemonSet wants no pod and sees that it has none.
func (f *field) none() {
	f.Helper()
	f.status("no node is wanted", func(s appsv1.DaemonSetStatus) bool { return s.DesiredNumberScheduled == 0 })
	f.quiet()
	if n := len(f.live()); n != 0 {
		f.Errorf("there are %d pods, want none\n%s", n, f.picture())
	}
}

func TestNoNodes(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.create(f.daemon(strategy))
		f.none()
		f.joinN(2)
		f.allReady(2)
	})
}

func TestNamedNode(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		node string
		role string
		pods int
	}{
		"Named":                 {"n1", "", 1},
		"NoSuchNode":            {"nowhere", "", 0},
		"NamedAndSelected":      {"n1", "n1", 1},
		"NamedAndOtherSelected": {"n1", "n2", 0},
		"NothingSelected":       {"", "nowhere", 0},
	} {
		t.Run(name, func(t *testing.T) {
			eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
				for i := range 3 {
					f.join(fmt.Sprintf("n%d", i), func(n *corev1.Node) { n.Labels["role"] = fmt.Sprintf("n%d", i) })
				}
				f.create(f.daemon(strategy, func(ds *appsv1.DaemonSet) {
					if c.node != "" {
						ds.Spec.Template.Spec.NodeName = f.node(c.node)
					}
					if c.role != "" {
						ds.Spec.Template.Spec.NodeSelector["role"] = c.role
					}
				}))
				if c.pods == 0 {
					f.none()
					return
				}
				f.allReady(1)
				if got := f.cached()[0].Spec.NodeName; got != f.node(c.node) {
					f.Errorf("the pod is on %s", got)
				}
			})
		})
	}
}

func TestNothingIsDoneForADaemonSetBeingDeleted(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.joinN(2)
		f.create(f.daemon(strategy, func(ds *appsv1.DaemonSet) { ds.Finalizers = []string{"example.org/hold"} }))
		f.allReady(2)
		stays, goes := f.cached()[0], f.cached()[1]
		if err := client.AppsV1().DaemonSets(f.ns).Delete(f.ctx, "d", metav1.DeleteOptions{}); err != nil {
			f.Fatal(err)
		}
		f.remove(goes)
		// The controller has seen all of it once another DaemonSet has a pod on
		// a node that joined later.
		f.create(f.second(strategy))
		for i, name := range []string{"late", "later"} {
			f.join(name)
			f.until("the other DaemonSet covers all", func() bool { return len(ofApp("e", f.cached())) == 3+i })
		}
		if n := f.liveOf("d"); len(n) != 1 || n[target(stays)] != 1 {
			f.Errorf("pods by node: %v", n)
		}
	})
}

func TestPortsOfTwoDaemonSets(t *testing.T) {
	port := func(port int32) func(*appsv1.DaemonSet) {
		return func(ds *appsv1.DaemonSet) {
			ds.Spec.Template.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: port, HostPort: port}}
		}
	}
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.join("only")
		f.create(f.daemon(strategy, port(6661)))
		f.allReady(1)
		first := f.cached()[0]
		f.create(f.second(strategy, port(6662)))
		f.serving = true
		f.until("two pods on the node", func() bool {
			return len(f.cached()) == 2 && f.cached()[0].Spec.NodeName == f.cached()[1].Spec.NodeName
		})
		if n := f.kept(map[types.UID]bool{first.UID: true}); n != 1 {
			f.Error("the first pod went")
		}
	})
}

func TestTaintsAndPodsThatRun(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.join("only")
		f.create(f.daemon(strategy))
		f.allReady(1)
		pod := f.uids(func(*corev1.Pod) bool { return true })
		f.changeNode("only", taint("k", corev1.TaintEffectNoSchedule))
		// Upstream's status says so when something else has it look again.
		late := time.Now().Add(patience)
		for {
			f.quiet()
			if s := f.get("d").Status; s.NumberMisscheduled == 1 && s.DesiredNumberScheduled == 0 {
				break
			}
			if time.Now().After(late) {
				f.Fatalf("the pod does not count as misscheduled\n%s", f.picture())
			}
		}
		if f.kept(pod) != 1 {
			f.Error("NoSchedule ended a pod that ran")
		}
		f.changeNode("only", func(n *corev1.Node) { n.Spec.Taints = nil })
		f.allReady(1)
		f.status("none misscheduled", func(s appsv1.DaemonSetStatus) bool { return s.NumberMisscheduled == 0 })
		if f.kept(pod) != 1 {
			f.Error("the pod was replaced")
		}
		f.changeNode("only", taint("k", corev1.TaintEffectNoExecute))
		f.until("no pods", func() bool { return len(f.cached()) == 0 })
		f.none()
	})
}

func TestTaintsOfConditions(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.join("not-ready", taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute))
		f.join("unreachable", taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute))
		f.join("pressure", taint(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule),
			taint(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule), taint(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule))
		// Tolerated by pods in the host's network only.
		f.join("cut-off", taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule))
		f.create(f.daemon(strategy))
		f.allReady(3)
	})
}

func TestNoPodBesideOneThatEnds(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.join("only")
		f.create(f.daemon(strategy, slowToStop))
		f.allReady(1)
		first := f.cached()[0]
		f.remove(first)
		f.until("a pod that ends", func() bool { return len(f.cached()) == 1 && f.cached()[0].DeletionTimestamp != nil })
		f.quiet()
		if pods := f.live(); len(pods) != 1 {
			f.Errorf("there are %d pods beside each other", len(pods))
		}
		now := int64(0)
		if err := client.CoreV1().Pods(f.ns).Delete(f.ctx, first.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			f.Fatal(err)
		}
		f.until("another pod", func() bool { return len(f.cached()) == 1 && f.cached()[0].UID != first.UID })
		f.allReady(1)
	})
}

func TestPodsForNodesThatAreGone(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.join("only")
		ds := f.create(f.daemon(strategy))
		f.allReady(1)
		owned := func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(ds, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))}
		}
		bound := f.stray(ds, "bound", f.on("gone"), owned)
		waits := f.stray(ds, "waits", owned, func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchFields: []corev1.NodeSelectorRequirement{
						{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{f.node("gone-too")}},
					},
				}}},
			}}
		})
		f.until("the pod that waits is deleted", func() bool {
			for _, p := range f.cached() {
				if p.UID == waits.UID {
					return false
				}
			}
			return len(f.cached()) == 2
		})
		f.quiet()
		// Those that were bound are for the collector of such pods.
		if f.kept(map[types.UID]bool{bound.UID: true}) != 1 {
			f.Error("the pod that was bound to a node went too")
		}
	})
}

func TestDaemonSetMadeAgainUnderItsName(t *testing.T) {
	eachStrategy(t, func(f *field, strategy func(*appsv1.DaemonSet)) {
		f.joinN(3)
		f.create(f.daemon(strategy))
		f.allReady(3)
		if err := client.AppsV1().DaemonSets(f.ns).Delete(f.ctx, "d", metav1.DeleteOptions{}); err != nil {
			f.Fatal(err)
		}
		// Nobody collects garbage here: the pods of the first one stay, and are
		// not the second one's.
		ds := f.create(f.daemon(strategy))
		f.until("three pods of the second one", func() bool {
			on := map[string]bool{}
			for _, p := range f.cached() {
				if metav1.IsControlledBy(p, ds) {
					on[target(p)] = true
				}
			}
			return len(on) == 3 && len(f.cached()) == 6
		})
	})
}
