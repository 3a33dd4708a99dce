package controller

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"legion.dev/legion/internal/daemonset"
)

// loopOnly is the loop of DaemonSets over a fleet of n nodes that has all its
// pods, without a server: its caches are filled by hand, and nothing is
// written.
type loopOnly struct {
	*daemons
	set  *set
	pods []*corev1.Pod
	// perNode is the heap that the loop itself keeps for each node, in bytes.
	perNode float64
}

func newLoopOnly(tb testing.TB, n int) *loopOnly {
	tb.Helper()
	factory := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
	if err := factory.Core().V1().Pods().Informer().AddIndexers(podIndexers); err != nil {
		tb.Fatal(err)
	}
	cfg := Config{Writes: 64, Log: slog.New(slog.DiscardHandler)}
	c, err := newDaemons(cfg, factory, record.NewFakeRecorder(0))
	if err != nil {
		tb.Fatal(err)
	}
	half := intstr.FromString("50%")
	match := map[string]string{"app": "d"}
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "n", UID: "ds", Generation: 1},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: match},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &half},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: match},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{
					Name: "d", Image: "d", Resources: corev1.ResourceRequirements{
						Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")},
					},
				}}},
			},
		},
	}
	l := &loopOnly{daemons: c}
	nodes := factory.Core().V1().Nodes().Informer().GetStore()
	for i := range n {
		name := fmt.Sprintf("node-%06d", i)
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{corev1.LabelHostname: name}},
			Status: corev1.NodeStatus{
				Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourcePods: resource.MustParse("110")},
				Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		}
		pod := daemonset.NewPod(ds, "hash", name, true)
		pod.Name, pod.UID, pod.CreationTimestamp = "d-"+name, types.UID("pod-"+name), metav1.NewTime(time.Unix(int64(i), 0))
		pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
		if _, err := slim(pod); err != nil {
			tb.Fatal(err)
		}
		if err := nodes.Add(node); err != nil {
			tb.Fatal(err)
		}
		if err := c.pods.Add(pod); err != nil {
			tb.Fatal(err)
		}
		l.pods = append(l.pods, pod)
	}
	before := heap()
	l.set = newSet(nameOf(ds), ds)
	// A status write under way for ever: what a write costs is the server's.
	l.set.hash, l.set.writing = "hash", true
	c.sets[l.set.name] = l.set
	c.rebuild(context.Background(), l.set)
	l.perNode = float64(heap()-before) / float64(n)
	if t := l.set.fleet.Tally(); t.Ready != n || len(l.set.flights) != 0 {
		tb.Fatalf("%d of %d nodes are ready, %d pods are being made", t.Ready, n, len(l.set.flights))
	}
	return l
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// event changes the readiness of a pod as its node's report does, and lets the
// loop do all that follows.
func (l *loopOnly) event(tb testing.TB, i int) {
	at := i * 7919 % len(l.pods)
	old := l.pods[at]
	pod := old.DeepCopy()
	c := &pod.Status.Conditions[0]
	if c.Status == corev1.ConditionTrue {
		c.Status = corev1.ConditionFalse
	} else {
		c.Status = corev1.ConditionTrue
	}
	l.pods[at] = pod
	if err := l.daemons.pods.Update(pod); err != nil {
		tb.Fatal(err)
	}
	l.podSeen(old, pod)
	dirty := map[*set]bool{}
	for l.queue.Len() > 0 {
		it, _ := l.queue.Get()
		l.handle(context.Background(), it, dirty)
		l.queue.Done(it)
	}
	for s := range dirty {
		l.settle(context.Background(), s)
	}
}

// processorTime is what this process has taken of all processors, collection of
// garbage included; unlike time it does not count what others take.
func processorTime(tb testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPodEvent is what one pod's news costs the loop, from the handler of
// the cache to the status that is to be written, in fleets of several sizes.
func BenchmarkPodEvent(b *testing.B) {
	for _, n := range []int{100, 1000, 10000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := newLoopOnly(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			began := processorTime(b)
			for i := range b.N {
				l.event(b, i)
			}
			b.ReportMetric(float64(processorTime(b)-began)/float64(b.N), "cpu-ns/op")
			b.ReportMetric(l.perNode, "heap-B/node")
		})
	}
}

// What an event allocates is a measure of what is done that does not depend
// on the machine.
func TestPodEventDoesNotGrowWithTheFleet(t *testing.T) {
	cost := func(n int) float64 {
		l := newLoopOnly(t, n)
		i := 0
		return testing.AllocsPerRun(200, func() {
			l.event(t, i)
			i++
		})
	}
	small, large := cost(100), cost(10000)
	if large > 1.5*small {
		t.Errorf("an event takes %.0f allocations with 10,000 nodes, %.0f with 100", large, small)
	}
}
