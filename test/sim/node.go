package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The kubelet's defaults (pkg/kubelet/apis/config/v1beta1/defaults.go).
const (
	leaseSeconds = 40
	statusEvery  = 5 * time.Minute
)

// node is one simulated node.
type node struct {
	name  string
	index int
	uid   types.UID
	// back tells the node's loop to say at once that it is there.
	back chan struct{}
	// stop ends the node's loop.
	stop context.CancelFunc

	// Guarded by the fleet's lock.
	silent bool
	pods   int // how many it has had
}

func (n *node) speak() {
	select {
	case n.back <- struct{}{}:
	default:
	}
}

// join registers one node, and its Lease, and keeps both.
func (f *Fleet) join(name string, index int) error {
	ctx, cancel := context.WithCancel(f.life)
	n := &node{name: name, index: index, back: make(chan struct{}, 1), stop: cancel}
	f.mu.Lock()
	f.nodes[name] = n
	f.mu.Unlock()
	api := f.client(n)
	err := f.beat(ctx, func() error {
		made, err := api.CoreV1().Nodes().Create(ctx, f.object(n), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			made, err = api.CoreV1().Nodes().PatchStatus(ctx, name, statusOf(f.object(n)))
		}
		if err == nil {
			n.uid = made.UID
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot register node %s: %w", name, err)
	}
	var lease *coordinationv1.Lease
	err = f.beat(ctx, func() (err error) {
		lease, err = f.claimLease(ctx, n)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot make the lease of node %s: %w", name, err)
	}
	f.mu.Lock()
	f.stats.Nodes++
	f.tell()
	f.mu.Unlock()
	f.running.Go(func() { f.keep(ctx, n, lease) })
	return nil
}

// Leave takes a node out of the fleet at once, as a machine that is scrapped:
// its Node and Lease are deleted, its pods are nobody's business any more.
func (f *Fleet) Leave(ctx context.Context, name string) error {
	f.mu.Lock()
	n := f.nodes[name]
	if n != nil {
		delete(f.nodes, name)
		f.stats.Nodes--
		f.tell()
	}
	f.mu.Unlock()
	if n == nil {
		return fmt.Errorf("there is no simulated node %s", name)
	}
	n.stop()
	api := f.client(n)
	if err := api.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot delete node %s: %w", name, err)
	}
	err := api.CoordinationV1().Leases(corev1.NamespaceNodeLease).Delete(ctx, name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot delete the lease of node %s: %w", name, err)
	}
	return nil
}

func (f *Fleet) beat(ctx context.Context, call func() error) error {
	select {
	case f.beats <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-f.beats }()
	return call()
}

// keep renews the Lease and repeats the status until the node leaves.
func (f *Fleet) keep(ctx context.Context, n *node, lease *coordinationv1.Lease) {
	first := fateOf(&Config{Seed: f.cfg.Seed, Start: Span{Max: f.cfg.Renew}}, n.name, -1).start
	renew := time.NewTimer(first)
	defer renew.Stop()
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	for {
		tellStatus := false
		select {
		case <-ctx.Done():
			return
		case <-renew.C:
			renew.Reset(f.cfg.Renew)
		case <-status.C:
			tellStatus = true
		case <-n.back:
			tellStatus = true
		}
		f.mu.Lock()
		silent := n.silent
		f.mu.Unlock()
		if silent {
			continue
		}
		err := f.beat(ctx, func() (err error) {
			if tellStatus {
				_, err = f.client(n).CoreV1().Nodes().PatchStatus(ctx, n.name, statusOf(f.object(n)))
				if err != nil {
					return err
				}
			}
			lease, err = f.renew(ctx, n, lease)
			return err
		})
		if err != nil && ctx.Err() == nil {
			f.cfg.Log.Warn("a simulated node could not tell that it is alive", "node", n.name, "error", err)
		}
	}
}

func (f *Fleet) claimLease(ctx context.Context, n *node) (*coordinationv1.Lease, error) {
	api := f.client(n).CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(leaseSeconds)
	want := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.name, Namespace: corev1.NamespaceNodeLease,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.name, UID: n.uid}},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &n.name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}
	lease, err := api.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		lease, err = api.Get(ctx, n.name, metav1.GetOptions{})
	}
	return lease, err
}

func (f *Fleet) renew(ctx context.Context, n *node, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	want := lease.DeepCopy()
	now := metav1.NowMicro()
	want.Spec.RenewTime = &now
	renewed, err := f.client(n).wire.updateLease(ctx, want)
	if err == nil {
		return renewed, nil
	}
	if !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return lease, err
	}
	if renewed, err = f.claimLease(ctx, n); err != nil {
		return lease, err
	}
	return renewed, nil
}

// object is the node as it registers.
func (f *Fleet) object(n *node) *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname: n.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}
	if f.cfg.Labels != nil {
		maps.Copy(labels, f.cfg.Labels(n.index))
	}
	has := corev1.ResourceList{
		corev1.ResourceCPU:              resource.MustParse("4"),
		corev1.ResourceMemory:           resource.MustParse("8Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
		corev1.ResourcePods:             resource.MustParse("110"),
	}
	now := metav1.Now()
	var conditions []corev1.NodeCondition
	add := func(t corev1.NodeConditionType, s corev1.ConditionStatus, reason, message string) {
		conditions = append(conditions, corev1.NodeCondition{
			Type: t, Status: s, Reason: reason, Message: message, LastHeartbeatTime: now, LastTransitionTime: now,
		})
	}
	add(corev1.NodeMemoryPressure, corev1.ConditionFalse, "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
	add(corev1.NodeDiskPressure, corev1.ConditionFalse, "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
	add(corev1.NodePIDPressure, corev1.ConditionFalse, "KubeletHasSufficientPID", "kubelet has sufficient PID available")
	add(corev1.NodeReady, corev1.ConditionTrue, "KubeletReady", "the node is simulated")
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: labels},
		Status: corev1.NodeStatus{
			Capacity: has, Allocatable: has, Conditions: conditions,
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: n.address()}, {Type: corev1.NodeHostName, Address: n.name},
			},
			NodeInfo: corev1.NodeSystemInfo{
				KubeletVersion: "v1.37.2", OperatingSystem: "linux", Architecture: "amd64", ContainerRuntimeVersion: "sim://1",
			},
			RuntimeHandlers: []corev1.NodeRuntimeHandler{{Name: ""}, {Name: "host"}},
		},
	}
}

func (n *node) address() string {
	return fmt.Sprintf("10.%d.%d.%d", 64+n.index>>16&63, n.index>>8&255, n.index&255)
}

func statusOf(n *corev1.Node) []byte {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": n.Status.Conditions}})
	if err != nil {
		panic(err) // plain structs
	}
	return patch
}
