package controller_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/controller"
)

// nodeGrace is short, so that losing a node can be seen in a test, and not so
// short that the Leases of all nodes keep a busy machine from everything else.
const nodeGrace = 5 * time.Second

// patience is how long a test waits for what should be there in a moment: the
// machine may be busy.
const patience = 60 * time.Second

// client reaches one real server, with etcd, that all tests share. Each test
// has a namespace and nodes of its own.
var client kubernetes.Interface

// killControllers ends the controllers at once; the server starts them again,
// as after a crash: with nothing but what the API says.
var killControllers atomic.Pointer[context.CancelFunc]

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "legion-controller-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- apiserver.Run(ctx, apiserver.Config{
			Dir: dir, Listen: "127.0.0.1",
			Controllers: func(ctx context.Context, inside apiserver.Inside) error {
				ctx, kill := context.WithCancel(ctx)
				killControllers.Store(&kill)
				return controller.Run(ctx, controller.Config{Client: inside.Client, NodeGrace: nodeGrace})
			},
			Ready: func(string) { close(ready) },
		})
	}()
	defer func() {
		cancel()
		<-ended
	}()
	select {
	case <-ready:
	case err := <-ended:
		fmt.Fprintln(os.Stderr, "the server did not start:", err)
		ended <- nil
		return 1
	}
	config, err := clientcmd.BuildConfigFromFlags("", apiserver.AdminKubeconfig(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	config.QPS = -1
	client = kubernetes.NewForConfigOrDie(config)
	return m.Run()
}

// field is the part of the world one test has for itself.
type field struct {
	*testing.T
	ctx context.Context
	ns  string

	mu sync.Mutex
	// hold keeps agents from making pods ready.
	hold map[string]bool
	// silent nodes renew no Lease and answer nothing.
	silent map[string]bool
}

func newField(t *testing.T) *field {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "t-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f := &field{T: t, ctx: ctx, ns: ns.Name, hold: map[string]bool{}, silent: map[string]bool{}}
	go f.agents()
	go f.restate()
	return f
}

// restate does what agents do whose nodes were taken for lost, on a machine
// too busy to renew a Lease in time: they say that they are ready, and their
// pods too.
func (f *field) restate() {
	for f.ctx.Err() == nil {
		w, err := client.CoreV1().Nodes().Watch(f.ctx, metav1.ListOptions{LabelSelector: "field=" + f.ns})
		if err != nil {
			continue
		}
		for e := range w.ResultChan() {
			node, ok := e.Object.(*corev1.Node)
			if !ok || e.Type == watch.Deleted {
				continue
			}
			f.mu.Lock()
			silent := f.silent[node.Name]
			f.mu.Unlock()
			for _, c := range node.Status.Conditions {
				switch {
				case c.Type != corev1.NodeReady || silent:
				case c.Status == corev1.ConditionUnknown:
					_ = f.patchReady(node.Name, corev1.ConditionTrue)
				case c.Status == corev1.ConditionTrue:
					f.restatePods(node.Name)
				}
			}
		}
	}
}

// restatePods makes those pods of a node ready again that became unready with it.
func (f *field) restatePods(node string) {
	list, err := client.CoreV1().Pods(f.ns).List(f.ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return
	}
	for _, pod := range list.Items {
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Reason == "NodeNotReady" {
				f.setPod(pod.Name, corev1.PodRunning, true)
			}
		}
	}
}

func (f *field) node(name string) string { return f.ns + "-" + name }

// agents does for all pods of the namespace what the agents of their nodes do:
// it makes them ready, and lets those go that are being deleted.
func (f *field) agents() {
	for f.ctx.Err() == nil {
		w, err := client.CoreV1().Pods(f.ns).Watch(f.ctx, metav1.ListOptions{})
		if err != nil {
			continue
		}
		for e := range w.ResultChan() {
			if pod, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Deleted {
				go f.serve(pod)
			}
		}
	}
}

func (f *field) serve(pod *corev1.Pod) {
	f.mu.Lock()
	idle := f.silent[pod.Spec.NodeName] || f.hold[pod.Labels["hold"]] && pod.DeletionTimestamp == nil
	f.mu.Unlock()
	if idle || pod.Spec.NodeName == "" {
		return
	}
	if pod.DeletionTimestamp != nil {
		zero := int64(0)
		_ = client.CoreV1().Pods(f.ns).Delete(f.ctx, pod.Name, metav1.DeleteOptions{
			GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID},
		})
		return
	}
	if pod.Status.Phase == corev1.PodPending {
		f.setPod(pod.Name, corev1.PodRunning, true)
	}
}

func (f *field) setPod(name string, phase corev1.PodPhase, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	patch := fmt.Sprintf(`{"status":{"phase":%q,"conditions":[{"type":"Ready","status":%q,"reason":"Test","lastTransitionTime":%q}]}}`,
		phase, status, time.Now().UTC().Format(time.RFC3339))
	_, err := client.CoreV1().Pods(f.ns).Patch(f.ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && f.ctx.Err() == nil {
		f.Errorf("cannot set pod %s: %v", name, err)
	}
}

// join adds a ready node of this test that renews its Lease.
func (f *field) join(name string, with ...func(*corev1.Node)) string {
	f.Helper()
	full := f.node(name)
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("110"),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: full, Labels: map[string]string{"field": f.ns}},
		Status: corev1.NodeStatus{
			Capacity: room, Allocatable: room,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
		},
	}
	for _, w := range with {
		w(node)
	}
	if _, err := client.CoreV1().Nodes().Create(f.ctx, node, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = client.CoreV1().Nodes().Delete(context.Background(), full, metav1.DeleteOptions{}) })
	holder := full
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: full, Namespace: corev1.NamespaceNodeLease},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder},
	}
	if _, err := client.CoordinationV1().Leases(lease.Namespace).Create(f.ctx, lease, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	go func() {
		for tick := time.NewTicker(nodeGrace / 4); ; {
			select {
			case <-f.ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			f.mu.Lock()
			silent := f.silent[full]
			f.mu.Unlock()
			if !silent {
				patch := fmt.Sprintf(`{"spec":{"renewTime":%q}}`, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"))
				_, _ = client.CoordinationV1().Leases(lease.Namespace).Patch(f.ctx, full, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			}
		}
	}()
	return full
}

// reportReady does what an agent does that is back: it says how its node is.
func (f *field) reportReady(full string, status corev1.ConditionStatus) {
	f.Helper()
	if err := f.patchReady(full, status); err != nil {
		f.Fatal(err)
	}
}

func (f *field) patchReady(full string, status corev1.ConditionStatus) error {
	now := time.Now().UTC().Format(time.RFC3339)
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"Ready","status":%q,"reason":"Test","lastHeartbeatTime":%q,"lastTransitionTime":%q}]}}`, status, now, now)
	_, err := client.CoreV1().Nodes().PatchStatus(f.ctx, full, []byte(patch))
	return err
}

func (f *field) setSilent(full string, silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent[full] = silent
}

func (f *field) setHold(value string, hold bool) {
	f.mu.Lock()
	f.hold[value] = hold
	f.mu.Unlock()
	if hold {
		return
	}
	for _, pod := range f.pods() {
		f.serve(&pod)
	}
}

// daemon returns a DaemonSet for the nodes of this test.
func (f *field) daemon(name string, with ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	labels := map[string]string{"app": name}
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: f.ns},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{"field": f.ns},
					Containers:   []corev1.Container{{Name: "c", Image: "example.org/daemon:1"}},
				},
			},
		},
	}
	for _, w := range with {
		w(ds)
	}
	return ds
}

func (f *field) create(ds *appsv1.DaemonSet) *appsv1.DaemonSet {
	f.Helper()
	made, err := client.AppsV1().DaemonSets(f.ns).Create(f.ctx, ds, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return made
}

// change edits a DaemonSet, again if somebody else wrote meanwhile.
func (f *field) change(name string, edit func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	f.Helper()
	for {
		ds, err := client.AppsV1().DaemonSets(f.ns).Get(f.ctx, name, metav1.GetOptions{})
		if err != nil {
			f.Fatal(err)
		}
		edit(ds)
		ds, err = client.AppsV1().DaemonSets(f.ns).Update(f.ctx, ds, metav1.UpdateOptions{})
		if err == nil {
			return ds
		}
		if !apierrors.IsConflict(err) {
			f.Fatal(err)
		}
	}
}

func (f *field) pods() []corev1.Pod {
	f.Helper()
	list, err := client.CoreV1().Pods(f.ns).List(f.ctx, metav1.ListOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return list.Items
}

// untilStatus waits for a status of the DaemonSet, from a watch.
func (f *field) untilStatus(name, what string, ok func(*appsv1.DaemonSet) bool) *appsv1.DaemonSet {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	var last *appsv1.DaemonSet
	for ctx.Err() == nil {
		w, err := client.AppsV1().DaemonSets(f.ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err != nil {
			break
		}
		for e := range w.ResultChan() {
			ds, is := e.Object.(*appsv1.DaemonSet)
			if !is {
				continue
			}
			if last = ds; ok(ds) {
				w.Stop()
				return ds
			}
		}
	}
	if last != nil {
		f.Fatalf("daemonset %s: %s did not come about; its status is %+v", name, what, last.Status)
	}
	f.Fatalf("daemonset %s: %s did not come about", name, what)
	return nil
}

// untilReady waits until all n nodes have an available, updated pod.
func (f *field) untilReady(name string, n int) *appsv1.DaemonSet {
	f.Helper()
	return f.untilStatus(name, fmt.Sprintf("%d of %d", n, n), func(ds *appsv1.DaemonSet) bool { return settled(ds, n) })
}

func settled(ds *appsv1.DaemonSet, n int) bool {
	s, want := ds.Status, int32(n)
	return s.ObservedGeneration == ds.Generation && s.DesiredNumberScheduled == want && s.CurrentNumberScheduled == want &&
		s.NumberReady == want && s.NumberAvailable == want && s.UpdatedNumberScheduled == want && s.NumberUnavailable == 0 && s.NumberMisscheduled == 0
}

// untilPods waits for a state of all pods of the namespace, from a watch.
func (f *field) untilPods(what string, ok func([]corev1.Pod) bool) []corev1.Pod {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		w, err := client.CoreV1().Pods(f.ns).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			break
		}
		if pods := f.pods(); ok(pods) {
			w.Stop()
			return pods
		}
		for range w.ResultChan() {
			if pods := f.pods(); ok(pods) {
				w.Stop()
				return pods
			}
		}
	}
	f.Fatalf("%s did not come about; the pods are %s", what, brief(f.pods()))
	return nil
}

// untilGone waits until a DaemonSet is deleted, by a watch.
func (f *field) untilGone(name string) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		list, err := client.AppsV1().DaemonSets(f.ns).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
		if err == nil && len(list.Items) == 0 {
			return
		}
		if err != nil {
			break
		}
		w, err := client.AppsV1().DaemonSets(f.ns).Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: list.ResourceVersion})
		if err != nil {
			break
		}
		for e := range w.ResultChan() {
			if e.Type == watch.Deleted {
				break
			}
		}
		w.Stop()
	}
	f.Fatalf("daemonset %s is not gone", name)
}

func (f *field) untilEvent(object, reason string) *corev1.Event {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, patience)
	defer cancel()
	for ctx.Err() == nil {
		w, err := client.CoreV1().Events(f.ns).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			break
		}
		for e := range w.ResultChan() {
			if ev, is := e.Object.(*corev1.Event); is && ev.InvolvedObject.Name == object && ev.Reason == reason {
				w.Stop()
				return ev
			}
		}
	}
	f.Fatalf("no event %s about %s", reason, object)
	return nil
}

func brief(pods []corev1.Pod) string {
	s := ""
	for _, p := range pods {
		s += fmt.Sprintf("[%s on %s %s rev %s deleting %v] ", p.Name, p.Spec.NodeName, p.Status.Phase,
			p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], p.DeletionTimestamp != nil)
	}
	return s
}

func nodesOf(pods []corev1.Pod) map[string]int {
	count := map[string]int{}
	for _, p := range pods {
		if p.DeletionTimestamp == nil {
			count[p.Spec.NodeName]++
		}
	}
	return count
}
