package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	"k8s.io/kubernetes/pkg/controller"
)

// patience is how long a state may take to come about.
const patience = 30 * time.Second

const hashLabel = appsv1.DefaultDaemonSetUniqueLabelKey

// field is the part of the cluster that one test has for itself: a namespace
// and the nodes that carry its name as a label. It plays the kubelets.
type field struct {
	*testing.T
	ctx     context.Context
	ns      string
	changes chan struct{} // something in the namespace changed

	pods, sets, revisions cache.Store
	// serving: the kubelets make every bound pod ready.
	serving bool
	served  map[types.UID]bool
}

func newField(t *testing.T) *field {
	t.Parallel()
	return openField(t)
}

func openField(t *testing.T) *field {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "f-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f := &field{T: t, ctx: ctx, ns: ns.Name, changes: make(chan struct{}, 1), served: map[types.UID]bool{}}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(f.ns))
	for store, informer := range map[*cache.Store]cache.SharedIndexInformer{
		&f.pods:      factory.Core().V1().Pods().Informer(),
		&f.sets:      factory.Apps().V1().DaemonSets().Informer(),
		&f.revisions: factory.Apps().V1().ControllerRevisions().Informer(),
	} {
		*store = informer.GetStore()
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { f.changed() },
			UpdateFunc: func(_, _ any) { f.changed() },
			DeleteFunc: func(any) { f.changed() },
		}); err != nil {
			t.Fatal(err)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return f
}

func (f *field) changed() {
	select {
	case f.changes <- struct{}{}:
	default:
	}
}

// until waits for a state that the namespace's objects show.
func (f *field) until(what string, ok func() bool) {
	f.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		if f.serving {
			f.readyAll()
		}
		if ok() {
			return
		}
		select {
		case <-f.changes:
		case <-late.C:
			f.Fatalf("%s did not come about\n%s", what, f.picture())
		}
	}
}

func (f *field) picture() string {
	var b strings.Builder
	for _, obj := range f.sets.List() {
		ds := obj.(*appsv1.DaemonSet)
		fmt.Fprintf(&b, "daemonset %s generation %d: %+v\n", ds.Name, ds.Generation, ds.Status)
	}
	for _, obj := range f.revisions.List() {
		r := obj.(*appsv1.ControllerRevision)
		fmt.Fprintf(&b, "revision %s number %d\n", r.Name, r.Revision)
	}
	for _, p := range f.cached() {
		fmt.Fprintf(&b, "pod %s on %s (%s) %s ready=%v revision %s deleting=%v\n", p.Name, p.Spec.NodeName, target(p),
			p.Status.Phase, podutil.IsPodReady(p), p.Labels[hashLabel], p.DeletionTimestamp != nil)
	}
	return b.String()
}

// cached are the pods of the namespace, by name.
func (f *field) cached() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, obj := range f.pods.List() {
		pods = append(pods, obj.(*corev1.Pod))
	}
	sort.Slice(pods, func(i, j int) bool { return pods[i].Name < pods[j].Name })
	return pods
}

func (f *field) node(name string) string { return f.ns + "-" + name }

// join adds a ready node with room for a hundred pods.
func (f *field) join(name string, with ...func(*corev1.Node)) {
	f.Helper()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: f.node(name), Labels: map[string]string{"field": f.ns}},
		Status: corev1.NodeStatus{
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			Allocatable: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("100")},
		},
	}
	for _, w := range with {
		w(n)
	}
	if _, err := client.CoreV1().Nodes().Create(f.ctx, n, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = client.CoreV1().Nodes().Delete(context.Background(), n.Name, metav1.DeleteOptions{}) })
}

func (f *field) joinN(n int) {
	f.Helper()
	for i := range n {
		f.join(fmt.Sprintf("n%d", i))
	}
}

func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

func (f *field) changeNode(name string, edit func(*corev1.Node)) {
	f.Helper()
	f.again(func() error {
		n, err := client.CoreV1().Nodes().Get(f.ctx, f.node(name), metav1.GetOptions{})
		if err != nil {
			return err
		}
		edit(n)
		_, err = client.CoreV1().Nodes().Update(f.ctx, n, metav1.UpdateOptions{})
		return err
	})
}

// again does it until nobody else wrote meanwhile.
func (f *field) again(do func() error) {
	f.Helper()
	for {
		err := do()
		if err == nil {
			return
		}
		if !apierrors.IsConflict(err) {
			f.Fatal(err)
		}
	}
}

// daemon returns a DaemonSet for the nodes of this test, updated on delete.
func (f *field) daemon(with ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	now, labels := int64(0), map[string]string{"app": "d"}
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: f.ns},
		Spec: appsv1.DaemonSetSpec{
			Selector:       &metav1.LabelSelector{MatchLabels: labels},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector:                  map[string]string{"field": f.ns},
					Containers:                    []corev1.Container{{Name: "c", Image: "example.org/daemon:1"}},
					TerminationGracePeriodSeconds: &now,
				},
			},
		},
	}
	for _, w := range with {
		w(ds)
	}
	return ds
}

func rolling(unavailable, surge int) func(*appsv1.DaemonSet) {
	u, s := intstr.FromInt(unavailable), intstr.FromInt(surge)
	return func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
			Type:          appsv1.RollingUpdateDaemonSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &u, MaxSurge: &s},
		}
	}
}

func image(tag string) func(*appsv1.DaemonSet) {
	return func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "example.org/daemon:" + tag }
}

func (f *field) create(ds *appsv1.DaemonSet) *appsv1.DaemonSet {
	f.Helper()
	made, err := client.AppsV1().DaemonSets(f.ns).Create(f.ctx, ds, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return made
}

// change edits the DaemonSet.
func (f *field) change(edits ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	f.Helper()
	var ds *appsv1.DaemonSet
	f.again(func() (err error) {
		if ds, err = client.AppsV1().DaemonSets(f.ns).Get(f.ctx, "d", metav1.GetOptions{}); err != nil {
			return err
		}
		for _, edit := range edits {
			edit(ds)
		}
		ds, err = client.AppsV1().DaemonSets(f.ns).Update(f.ctx, ds, metav1.UpdateOptions{})
		return err
	})
	return ds
}

// status waits for a status that is of the DaemonSet's present generation.
func (f *field) status(what string, ok func(appsv1.DaemonSetStatus) bool) {
	f.Helper()
	f.until("status: "+what, func() bool {
		obj, there, _ := f.sets.GetByKey(f.ns + "/d")
		if !there {
			return false
		}
		ds := obj.(*appsv1.DaemonSet)
		return ds.Status.ObservedGeneration == ds.Generation && ok(ds.Status)
	})
}

// allReady waits until n pods run, one on each of n nodes, and are ready.
func (f *field) allReady(n int) {
	f.Helper()
	f.serving = true
	f.status(fmt.Sprintf("%d ready", n), func(s appsv1.DaemonSetStatus) bool {
		want := int32(n)
		return s.NumberReady == want && s.CurrentNumberScheduled == want && s.DesiredNumberScheduled == want
	})
	f.until(fmt.Sprintf("%d pods", n), func() bool { return len(f.cached()) == n })
	f.serving = false
	on := map[string]bool{}
	for _, p := range f.cached() {
		if on[target(p)] = true; p.Labels[hashLabel] == "" {
			f.Errorf("pod %s has no revision", p.Name)
		}
		owner := metav1.GetControllerOf(p)
		if owner == nil || owner.Kind != "DaemonSet" || owner.Name != "d" || len(p.OwnerReferences) != 1 {
			f.Errorf("pod %s is owned by %+v", p.Name, p.OwnerReferences)
		}
	}
	if len(on) != n {
		f.Errorf("%d pods are on %d nodes", n, len(on))
	}
}

// quiet has the controller look at the DaemonSet again, twice, and returns when
// its status says that it did. What it had to do before that, it has begun.
func (f *field) quiet() {
	f.Helper()
	for _, limit := range []int32{7, 8} {
		f.change(func(ds *appsv1.DaemonSet) { ds.Spec.RevisionHistoryLimit = &limit })
		f.status("seen", func(appsv1.DaemonSetStatus) bool { return true })
	}
}

// live are the pods as the API server has them now.
func (f *field) live() []corev1.Pod {
	f.Helper()
	list, err := client.CoreV1().Pods(f.ns).List(f.ctx, metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return list.Items
}

// hash is that of the template once the server has filled in its defaults.
func (f *field) hash(ds *appsv1.DaemonSet) string {
	f.Helper()
	ds = ds.DeepCopy()
	ds.ObjectMeta = metav1.ObjectMeta{GenerateName: "dry-", Namespace: f.ns}
	count := ds.Status.CollisionCount
	made, err := client.AppsV1().DaemonSets(f.ns).Create(f.ctx, ds, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		f.Fatal(err)
	}
	return controller.ComputeHash(&made.Spec.Template, count)
}

// readyAll makes each bound pod ready that was not made ready before.
func (f *field) readyAll() {
	for _, p := range f.cached() {
		if p.Spec.NodeName != "" && p.DeletionTimestamp == nil && !f.served[p.UID] && !podutil.IsPodReady(p) && !podutil.IsPodTerminal(p) {
			f.setReady(p, true)
		}
	}
}

func (f *field) setReady(p *corev1.Pod, ready bool) {
	f.Helper()
	f.setReadySince(p, ready, time.Now())
}

// setReadySince says of a pod that it has been ready, or not, for a while.
func (f *field) setReadySince(p *corev1.Pod, ready bool, since time.Time) {
	f.Helper()
	f.served[p.UID] = true
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	f.patchStatus(p, corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
		{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(since)},
	}})
}

// patchStatus changes the status of that very pod, unless it is gone.
func (f *field) patchStatus(p *corev1.Pod, status corev1.PodStatus) {
	f.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": status})
	if err != nil {
		f.Fatal(err)
	}
	_, err = client.CoreV1().Pods(f.ns).Patch(f.ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		f.Fatal(err)
	}
}

// target is the node a pod is made for.
func target(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, field := range term.MatchFields {
				if field.Key == metav1.ObjectNameField && len(field.Values) == 1 {
					return field.Values[0]
				}
			}
		}
	}
	return ""
}
