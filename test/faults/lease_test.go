package faults

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Nothing that a controller writes arrives after its Lease has ended, whatever
// part of it writes: DaemonSets, nodes, evictions, pods of nodes that are gone,
// events. The Lease is lost where all else still works.
func TestWritesNeedTheLease(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		w.nodeLoops, w.grace = true, 20*time.Second
		writes := map[string]int{}
		w.arrived = func(q request) { w.needLease(q, writes) }
		both := []*conn{w.connect(), w.connect()}
		for i, c := range both {
			c.slow = 400 * time.Millisecond
			w.process(c, fmt.Sprintf("controller-%d", i))
		}
		f := silence{w}
		f.beat()
		w.settle(20 * time.Minute)
		for n := 2; n < 6; n++ {
			w.update(fmt.Sprintf("d:%d", n))
			f.bare(fmt.Sprintf("bare-%d", n))
			node := f.fall()
			time.Sleep(time.Duration(w.random.IntN(20000)) * time.Millisecond)
			for _, c := range both {
				c.set(func(c *conn) { c.leaseLost = true })
				time.Sleep(time.Duration(15+w.random.IntN(40)) * time.Second)
				c.set(func(c *conn) { c.leaseLost = false })
				time.Sleep(time.Duration(w.random.IntN(10)) * time.Second)
			}
			f.rise(node)
			w.change(fmt.Sprintf("later-%d", n))
		}
		w.settle(30 * time.Minute)
		for _, what := range []string{"pods", "nodes", "events", "daemonsets"} {
			if writes[what] == 0 {
				t.Errorf("seed %d: nothing was written to %s: %v", seed, what, writes)
			}
		}
		if w.turns() == 0 {
			t.Errorf("seed %d: the Lease never changed hands", seed)
		}
	})
}

// needLease checks a write that arrives against the Lease.
func (w *world) needLease(q request, writes map[string]int) {
	if q.method == http.MethodGet || q.resource == "leases" {
		return
	}
	writes[q.resource]++
	s := w.lease().Spec
	if s.HolderIdentity == nil || *s.HolderIdentity != q.from {
		w.Errorf("seed %d: %s writes (%s %s %s) and the Lease is %v's", w.seed, q.from, q.method, q.resource, q.name, s.HolderIdentity)
		return
	}
	if ago := time.Since(s.RenewTime.Time); ago > time.Duration(*s.LeaseDurationSeconds)*time.Second {
		w.Errorf("seed %d: %s writes (%s %s %s) %v after its last renewal", w.seed, q.from, q.method, q.resource, q.name, ago)
	}
}

// lease is that of the election; the lock is held.
func (w *world) lease() *coordinationv1.Lease {
	if o := w.store["leases"]["kube-system/legion-controller"]; o != nil {
		return o.(*coordinationv1.Lease)
	}
	return &coordinationv1.Lease{}
}

// turns is how often the Lease has changed hands.
func (w *world) turns() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.lease().Spec.LeaseTransitions; n != nil {
		return int(*n)
	}
	return 0
}

// silence has nodes renew their Leases, and some of them not.
type silence struct{ *world }

// beat renews the Leases of all nodes that speak, every ten seconds.
func (f silence) beat() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctx.Err() != nil {
		return
	}
	for node := range f.nodes {
		if f.silent[node] {
			continue
		}
		now := metav1.NewMicroTime(f.now())
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node}}
		lease.Spec.RenewTime = &now
		if old := f.store["leases"][keyOf(lease)]; old != nil {
			lease.UID = old.GetUID()
			f.commit("leases", "MODIFIED", lease)
		} else {
			f.add("leases", lease)
		}
	}
	time.AfterFunc(10*time.Second, f.beat)
}

// fall has a node say nothing.
func (f silence) fall() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	node := f.anyNode()
	f.silent[node] = true
	return node
}

// rise has it speak again: it is ready, and so are its pods.
func (f silence) rise(node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.silent, node)
	o, there := f.store["nodes"]["/"+node]
	if !there {
		return
	}
	n := o.DeepCopyObject().(*corev1.Node)
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.NewTime(f.now())}}
	f.commit("nodes", "MODIFIED", n)
	for _, o := range f.store["pods"] {
		if p := o.(*corev1.Pod); target(p) == node {
			f.serve(p)
		}
	}
}

// bare makes a pod that tolerates no taints, on a node.
func (f silence) bare(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add("pods", &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{NodeName: f.anyNode(), Containers: []corev1.Container{{Name: "c", Image: "bare"}}},
	})
}
