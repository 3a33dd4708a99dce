package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"legion.dev/legion/internal/daemonset"
)

// nodes watches over the readiness of nodes: one whose Lease stops becomes
// Unknown, and taints follow the conditions.
type nodes struct {
	client kubernetes.Interface
	log    *slog.Logger
	events record.EventRecorder
	grace  time.Duration
	// refused is Config.Refused.
	refused func() time.Time
	lister  corelisters.NodeLister
	pods    cache.Indexer
	queue   workqueue.TypedRateLimitingInterface[string]

	// alive is when a sign of life of a node was last seen, by our own clock:
	// the nodes' clocks may be wrong.
	mu    sync.Mutex
	alive map[string]time.Time
	// armed are the nodes whose silence will be looked at.
	armed map[string]bool
}

func newNodes(cfg Config, all, leases informers.SharedInformerFactory, events record.EventRecorder) (*nodes, error) {
	n := &nodes{
		client: cfg.Client, log: cfg.Log, events: events, grace: cfg.NodeGrace, refused: cfg.Refused,
		lister: all.Core().V1().Nodes().Lister(),
		pods:   all.Core().V1().Pods().Informer().GetIndexer(),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, 30*time.Second)),
		alive: map[string]time.Time{},
		armed: map[string]bool{},
	}
	err := cfg.listening.to(all.Core().V1().Nodes().Informer(), each(func(old, node *corev1.Node) {
		if old == nil || heartbeat(old) != heartbeat(node) {
			n.saw(node.Name)
		}
		if old == nil || !equality.Semantic.DeepEqual(old.Spec, node.Spec) || !equality.Semantic.DeepEqual(old.Status.Conditions, node.Status.Conditions) {
			n.queue.Add(node.Name)
		}
	}))
	if err != nil {
		return nil, fmt.Errorf("cannot watch nodes: %w", err)
	}
	err = cfg.listening.to(leases.Coordination().V1().Leases().Informer(), each(func(old, l *coordinationv1.Lease) {
		if l.Namespace == corev1.NamespaceNodeLease && (old == nil || !old.Spec.RenewTime.Equal(l.Spec.RenewTime)) {
			n.saw(l.Name)
		}
	}))
	if err != nil {
		return nil, fmt.Errorf("cannot watch the leases of nodes: %w", err)
	}
	return n, nil
}

// heartbeat is when the agent last wrote the Ready condition.
func heartbeat(node *corev1.Node) time.Time {
	if c := condition(node, corev1.NodeReady); c != nil && c.Status != corev1.ConditionUnknown {
		return c.LastHeartbeatTime.Time
	}
	return time.Time{}
}

func condition(node *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == t {
			return c
		}
	}
	return nil
}

func (n *nodes) saw(node string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.alive[node] = time.Now()
}

// silent returns how long a node has been silent, and whether its silence is
// to be looked at later: one look is under way for each node at a time.
func (n *nodes) silent(node string) (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	last, ok := n.alive[node]
	if !ok {
		last = time.Now()
		n.alive[node] = last
	}
	if n.refused != nil {
		if deaf := n.refused(); deaf.After(last) {
			last = deaf
		}
	}
	return time.Since(last), n.armed[node]
}

// arm has the node looked at when its grace is over.
func (n *nodes) arm(node string, d time.Duration) {
	n.mu.Lock()
	n.armed[node] = true
	n.mu.Unlock()
	time.AfterFunc(max(d, time.Millisecond), func() {
		n.mu.Lock()
		delete(n.armed, node)
		n.mu.Unlock()
		n.queue.Add(node)
	})
}

func (n *nodes) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, n.queue.ShutDown)
	defer stop()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				node, quit := n.queue.Get()
				if quit {
					return
				}
				if err := n.look(ctx, node); err != nil && ctx.Err() == nil {
					if !apierrors.IsConflict(err) {
						n.log.Warn("cannot look after a node", "node", node, "error", err)
					}
					n.queue.AddRateLimited(node)
				} else {
					n.queue.Forget(node)
				}
				n.queue.Done(node)
			}
		})
	}
	wg.Wait()
}

// look brings one node's conditions and taints up to date.
func (n *nodes) look(ctx context.Context, name string) error {
	node, err := n.lister.Get(name)
	if err != nil {
		n.mu.Lock()
		delete(n.alive, name)
		n.mu.Unlock()
		return nil
	}
	silence, armed := n.silent(name)
	ready := condition(node, corev1.NodeReady)
	unknown := ready != nil && ready.Status == corev1.ConditionUnknown
	switch {
	case silence < n.grace:
		if !armed {
			n.arm(name, n.grace-silence)
		}
	case unknown:
	default:
		return n.lost(ctx, node)
	}
	if unknown {
		if err := n.markPods(ctx, name); err != nil {
			return err
		}
	}
	taints, changed := Taints(node, metav1.Now())
	if !changed {
		return nil
	}
	return n.taint(ctx, node, taints)
}

// lost marks a silent node Unknown, after a look at its Lease past the cache.
func (n *nodes) lost(ctx context.Context, node *corev1.Node) error {
	lease, err := n.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot read the lease of node %s: %w", node.Name, err)
	}
	// A lease renewed of late, as far as clocks agree, means that our watch is
	// behind.
	if err == nil && lease.Spec.RenewTime != nil && time.Since(lease.Spec.RenewTime.Time).Abs() < n.grace/2 {
		n.saw(node.Name)
		n.queue.Add(node.Name)
		return nil
	}
	now := metav1.Now()
	var conditions []corev1.NodeCondition
	for _, t := range []corev1.NodeConditionType{
		corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure,
	} {
		c := corev1.NodeCondition{
			Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown",
			Message: "Kubelet stopped posting node status.", LastTransitionTime: now, LastHeartbeatTime: now,
		}
		if was := condition(node, t); was == nil {
			c.Reason, c.Message, c.LastHeartbeatTime = "NodeStatusNeverUpdated", "Kubelet never posted node status.", node.CreationTimestamp
		} else {
			c.LastHeartbeatTime = was.LastHeartbeatTime
			if was.Status == corev1.ConditionUnknown {
				c.LastTransitionTime = was.LastTransitionTime
			}
		}
		conditions = append(conditions, c)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
		"status":   map[string]any{"conditions": conditions},
	})
	if err != nil {
		return err
	}
	if _, err := n.client.CoreV1().Nodes().PatchStatus(ctx, node.Name, patch); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("cannot mark node %s as Unknown: %w", node.Name, err)
	}
	n.events.Eventf(node, corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady (no sign of life for %v)", node.Name, n.grace)
	return nil
}

// markPods takes readiness off the pods of a node nobody hears of; the agent
// puts it back when it returns.
func (n *nodes) markPods(ctx context.Context, node string) error {
	objs, err := n.pods.ByIndex(byNode, node)
	if err != nil {
		return err
	}
	for _, o := range objs {
		pod := o.(*corev1.Pod)
		if !daemonset.Observe(pod).Ready {
			continue
		}
		now := metav1.Now()
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": pod.UID},
			"status": map[string]any{"conditions": []corev1.PodCondition{{
				Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "NodeNotReady",
				Message: "Node is not ready", LastTransitionTime: now,
			}}},
		})
		if err != nil {
			return err
		}
		_, err = n.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("cannot mark pod %s/%s as not ready: %w", pod.Namespace, pod.Name, err)
		}
	}
	return nil
}

func (n *nodes) taint(ctx context.Context, node *corev1.Node, taints []corev1.Taint) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": node.UID, "resourceVersion": node.ResourceVersion},
		"spec":     map[string]any{"taints": taints},
	})
	if err != nil {
		return err
	}
	if _, err := n.client.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("cannot set the taints of node %s: %w", node.Name, err)
	}
	return nil
}

// conditionTaints are the taints that follow from conditions.
var conditionTaints = []struct {
	condition corev1.NodeConditionType
	status    corev1.ConditionStatus
	taint     string
	evicts    bool
}{
	{corev1.NodeReady, corev1.ConditionFalse, corev1.TaintNodeNotReady, true},
	{corev1.NodeReady, corev1.ConditionUnknown, corev1.TaintNodeUnreachable, true},
	{corev1.NodeMemoryPressure, corev1.ConditionTrue, corev1.TaintNodeMemoryPressure, false},
	{corev1.NodeDiskPressure, corev1.ConditionTrue, corev1.TaintNodeDiskPressure, false},
	{corev1.NodePIDPressure, corev1.ConditionTrue, corev1.TaintNodePIDPressure, false},
	{corev1.NodeNetworkUnavailable, corev1.ConditionTrue, corev1.TaintNodeNetworkUnavailable, false},
}

// Taints returns the taints a node should have and whether that is a change.
// Taints that do not come of conditions are left as they are, and so are all
// those of a node that has never said how it is.
func Taints(node *corev1.Node, now metav1.Time) (taints []corev1.Taint, changed bool) {
	type id struct {
		key    string
		effect corev1.TaintEffect
	}
	ours, want := map[id]bool{}, map[id]bool{}
	reported := condition(node, corev1.NodeReady) != nil
	var order []id
	add := func(i id, on bool) {
		ours[i] = true
		if on && !want[i] {
			want[i] = true
			order = append(order, i)
		}
	}
	for _, m := range conditionTaints {
		if m.condition == corev1.NodeReady && !reported {
			continue
		}
		c := condition(node, m.condition)
		on := c != nil && c.Status == m.status
		add(id{m.taint, corev1.TaintEffectNoSchedule}, on)
		if m.evicts {
			add(id{m.taint, corev1.TaintEffectNoExecute}, on)
		}
	}
	add(id{corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule}, node.Spec.Unschedulable)
	has := map[id]bool{}
	for _, t := range node.Spec.Taints {
		i := id{t.Key, t.Effect}
		if ours[i] && !want[i] {
			changed = true
			continue
		}
		has[i] = true
		taints = append(taints, t)
	}
	for _, i := range order {
		if has[i] {
			continue
		}
		changed = true
		t := corev1.Taint{Key: i.key, Effect: i.effect}
		if i.effect == corev1.TaintEffectNoExecute {
			t.TimeAdded = &now
		}
		taints = append(taints, t)
	}
	return taints, changed
}
