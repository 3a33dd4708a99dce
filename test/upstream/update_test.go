package upstream

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

// started returns a field whose DaemonSet runs on n nodes, its pods ready or,
// if not, bound only.
func started(t *testing.T, n int, ready bool, with ...func(*appsv1.DaemonSet)) *field {
	f := newField(t)
	f.joinN(n)
	f.create(f.daemon(with...))
	if ready {
		f.allReady(n)
		return f
	}
	f.until(fmt.Sprintf("%d bound pods", n), func() bool {
		bound := 0
		for _, p := range f.cached() {
			if p.Spec.NodeName != "" {
				bound++
			}
		}
		return bound == n
	})
	f.status("all scheduled", func(s appsv1.DaemonSetStatus) bool { return int(s.CurrentNumberScheduled) == n })
	return f
}

// of counts the pods of an image, and those of them that are ready.
func (f *field) of(tag string) (count, ready int) {
	for _, p := range f.cached() {
		if p.DeletionTimestamp == nil && p.Spec.Containers[0].Image == "example.org/daemon:"+tag {
			if count++; podutil.IsPodReady(p) {
				ready++
			}
		}
	}
	return count, ready
}

// stays waits for so many pods of the image, then says that there are no more
// when the controller has looked again, and that all others are as they were.
func (f *field) stays(tag string, n, total int) {
	f.Helper()
	f.until(fmt.Sprintf("%d pods of image %s among %d", n, tag, total), func() bool {
		count, _ := f.of(tag)
		return count == n && len(f.cached()) == total
	})
	f.quiet()
	count := 0
	pods := f.live()
	for _, p := range pods {
		if p.Spec.Containers[0].Image == "example.org/daemon:"+tag {
			count++
		}
	}
	if count != n || len(pods) != total {
		f.Fatalf("%d pods of image %s among %d, want %d among %d\n%s", count, tag, len(pods), n, total, f.picture())
	}
}

func (f *field) uids(of func(*corev1.Pod) bool) map[types.UID]bool {
	uids := map[types.UID]bool{}
	for _, p := range f.cached() {
		if of(p) {
			uids[p.UID] = true
		}
	}
	return uids
}

func (f *field) kept(uids map[types.UID]bool) int {
	n := 0
	for _, p := range f.live() {
		if uids[p.UID] && p.DeletionTimestamp == nil {
			n++
		}
	}
	return n
}

func TestUpdateInSteps(t *testing.T) {
	f := started(t, 5, true)
	f.change(rolling(2, 0), image("2"))
	for _, n := range []int{2, 4, 5} {
		f.stays("2", n, 5)
		f.readyAll()
	}
	f.allReady(5)
}

func TestUpdateStopsAtPodsNotReady(t *testing.T) {
	f := started(t, 5, true)
	f.change(rolling(3, 0), image("2"))
	f.stays("2", 3, 5)
}

func TestNextUpdateTakesPodsNotReadyFirst(t *testing.T) {
	f := started(t, 5, true)
	f.change(rolling(2, 0), image("2"))
	f.stays("2", 2, 5)
	old := f.uids(podutil.IsPodReady)
	f.change(image("3"))
	f.stays("3", 2, 5)
	if n := f.kept(old); n != 3 {
		f.Errorf("%d of three ready pods were left", n)
	}
}

func TestReadyPodsAreSparedWhileOthersAreDown(t *testing.T) {
	f := started(t, 20, true)
	f.change(rolling(10, 0), image("2"))
	f.stays("2", 10, 20)
	old := f.uids(podutil.IsPodReady)
	for i, unavailable := range []int{1, 3, 9} {
		tag := fmt.Sprintf("3-%d", i)
		f.change(rolling(unavailable, 0), image(tag))
		f.stays(tag, 10, 20)
		if n := f.kept(old); n != 10 {
			f.Errorf("maxUnavailable %d with ten down: %d of ten ready pods were left", unavailable, n)
		}
	}
	f.change(rolling(11, 0), image("4"))
	f.stays("4", 11, 20)
	if n := f.kept(old); n != 9 {
		f.Errorf("maxUnavailable 11 with ten down: %d of ten ready pods were left, want 9", n)
	}
}

func TestOldPodsNotReadyGoBeyondTheBudget(t *testing.T) {
	f := started(t, 5, false)
	f.change(rolling(3, 0), image("2"))
	f.stays("2", 5, 5)
}

func TestMostlyDownFleetReplacesOnlyOldPodsThatAreDown(t *testing.T) {
	// Two old pods ready, two old ones down, six new ones down; budget two.
	f := started(t, 10, true)
	f.change(rolling(6, 0), image("2"))
	f.stays("2", 6, 10)
	down := 0
	for _, p := range f.cached() {
		if podutil.IsPodReady(p) && down < 2 {
			down++
			f.change(rolling(2, 0))
			f.setReady(p, false)
		}
	}
	f.stays("2", 8, 10)
	if n := len(f.uids(podutil.IsPodReady)); n != 2 {
		f.Errorf("%d pods are ready, want the two old ones", n)
	}
}

func TestOtherStrategyReplacesNothing(t *testing.T) {
	f := started(t, 5, false)
	before := f.uids(func(*corev1.Pod) bool { return true })
	f.change(rolling(3, 0))
	f.quiet()
	if n := f.kept(before); n != 5 {
		f.Errorf("%d of five pods were left", n)
	}
}

func TestSurgeInSteps(t *testing.T) {
	f := started(t, 5, true)
	f.change(rolling(0, 2), image("2"))
	f.stays("2", 2, 7)
	f.readyAll()
	f.stays("2", 4, 7)
	f.readyAll()
	f.stays("2", 5, 6)
	f.readyAll()
	f.stays("2", 5, 5)
}

func TestSurgeLeavesANodeItMayNotRunOn(t *testing.T) {
	f := newField(t)
	f.joinN(4)
	f.join("control", taint("control", corev1.TaintEffectNoSchedule))
	f.create(f.daemon(rolling(0, 1), func(ds *appsv1.DaemonSet) {
		ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "control", Operator: corev1.TolerationOpExists}}
	}))
	f.allReady(5)
	f.change(image("2"), func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Tolerations = nil })
	// The fifth node's pod goes at once: none will come in its place.
	f.stays("2", 1, 5)
	for n := 2; n <= 4; n++ {
		f.readyAll()
		f.stays("2", n, 5)
	}
	f.readyAll()
	f.stays("2", 4, 4)
}

func TestSurgeReplacesPodsNotReadyBeyondTheBudget(t *testing.T) {
	f := started(t, 5, false, rolling(0, 3))
	f.change(image("2"))
	f.stays("2", 5, 5)
}

func TestSurgeWaitsForMinReadySeconds(t *testing.T) {
	f := started(t, 5, true, rolling(0, 3))
	long := time.Now().Add(-time.Hour)
	for _, p := range f.cached() {
		f.setReadySince(p, true, long)
	}
	f.change(image("2"), func(ds *appsv1.DaemonSet) { ds.Spec.MinReadySeconds = 600 })
	f.stays("2", 3, 8)

	// Two new pods are ready, though not for long; the old one beside each
	// stays. An old pod that breaks is replaced beyond the budget.
	surged, fresh := map[string]bool{}, []*corev1.Pod{}
	for _, p := range f.cached() {
		if p.Spec.Containers[0].Image == "example.org/daemon:2" {
			surged[target(p)] = true
			fresh = append(fresh, p)
		}
	}
	for _, p := range fresh[:2] {
		f.setReadySince(p, true, time.Now())
	}
	for _, p := range f.cached() {
		if !surged[target(p)] {
			f.setReadySince(p, false, time.Now())
			break
		}
	}
	f.stays("2", 4, 8)

	// The two have been ready for long enough: the old ones beside them go, and
	// the last node is free to surge.
	for _, p := range fresh[:2] {
		f.setReadySince(p, true, long)
	}
	f.stays("2", 5, 7)
	for _, p := range f.cached() {
		if p.Spec.Containers[0].Image == "example.org/daemon:2" {
			f.setReadySince(p, true, long)
		}
	}
	f.stays("2", 5, 5)
}

func TestSurgeReplacesADeletedPodBeyondTheBudget(t *testing.T) {
	f := started(t, 5, true, rolling(0, 1), slowToStop)
	f.change(image("2"))
	f.stays("2", 1, 6)
	on := map[string]int{}
	for _, p := range f.cached() {
		on[target(p)]++
	}
	for _, p := range f.cached() {
		if on[target(p)] == 1 {
			f.remove(p)
			break
		}
	}
	f.stays("2", 2, 7)
}
