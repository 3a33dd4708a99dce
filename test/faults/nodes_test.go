package faults

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nodes join and leave while updates go on; some come back under their names, at
// once or when their pods have been collected.
func TestNodesComeAndGo(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		w.nodeLoops = true
		c := w.connect()
		c.slow = 300 * time.Millisecond
		w.process(c, "")
		w.settle(20 * time.Minute)
		w.count()
		for update := 2; update < 4; update++ {
			changes := 12
			w.disturb(fmt.Sprintf("d:%d", update), 4*time.Second, func() {
				if changes--; changes >= 0 {
					w.change(fmt.Sprintf("later-%d-%d", update, changes))
				}
			})
			w.settle(20 * time.Minute)
		}
	})
}

// change has a node join, leave, or leave and come back.
func (w *world) change(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	what := w.random.IntN(3)
	if what == 0 || len(w.nodes) < 4 {
		w.join(name)
		return
	}
	gone := w.anyNode()
	w.leave(gone)
	if what == 1 {
		return
	}
	time.AfterFunc(time.Duration(w.random.IntN(6000))*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.ctx.Err() == nil {
			w.join(gone)
		}
	})
}

// A DaemonSet is deleted and its pods are left behind (--cascade=orphan); that
// they are nobody's is seen long before the deletion is. Nothing is made beside
// them, and none is adopted.
func TestDeletionIsSeenLate(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.slow = 200 * time.Millisecond
		w.process(c, "")
		w.settle(10 * time.Minute)
		w.mu.Lock()
		for watch := range w.watches {
			if watch.resource == "daemonsets" {
				watch.hold(30 * time.Second)
			}
		}
		going := w.daemonSet().DeepCopy()
		now := metav1.Now()
		going.DeletionTimestamp, going.Finalizers = &now, []string{metav1.FinalizerOrphanDependents}
		w.commit("daemonsets", "MODIFIED", going)
		left := map[string]bool{}
		for _, o := range w.store["pods"] {
			pod := o.(*corev1.Pod).DeepCopy()
			pod.OwnerReferences = nil
			w.commit("pods", "MODIFIED", pod)
			left[string(pod.UID)] = true
		}
		// From now on no pod changes any more, in any way.
		seen := w.seen
		w.seen = func(c change) {
			if c.resource == "pods" {
				w.Errorf("seed %d: after the deletion: %s of pod %s, owned by %v", seed, c.kind, c.object.GetName(), c.object.GetOwnerReferences())
			}
			seen(c)
		}
		w.mu.Unlock()
		time.Sleep(20 * time.Second)
		w.mu.Lock()
		w.commit("daemonsets", "DELETED", w.daemonSet().DeepCopyObject().(*appsv1.DaemonSet))
		w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, o := range w.store["pods"] {
			delete(left, string(o.GetUID()))
		}
		if len(left) > 0 {
			t.Errorf("seed %d: %d pods are gone", seed, len(left))
		}
	})
}
