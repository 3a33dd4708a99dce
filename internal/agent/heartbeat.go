package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The kubelet's defaults (pkg/kubelet/apis/config/v1beta1/defaults.go).
const (
	leaseDuration = 40 * time.Second
	renewEvery    = 10 * time.Second
	statusEvery   = 5 * time.Minute
	// silent is the gap between two renewals after which the server may have
	// marked the node as lost.
	silent = 25 * time.Second
	// hostPatience is how long legiond may be away, to be started again say,
	// before the node is not ready.
	hostPatience = 5 * time.Second
)

// nodeAPI is what the node's heartbeat needs of the API server.
type nodeAPI interface {
	GetNode(ctx context.Context, name string) (*v1.Node, error)
	CreateNode(ctx context.Context, node *v1.Node) (*v1.Node, error)
	PatchNode(ctx context.Context, name string, patch []byte, subresource ...string) (*v1.Node, error)
	GetLease(ctx context.Context, name string) (*coordinationv1.Lease, error)
	CreateLease(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error)
	UpdateLease(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error)
}

// heartbeat keeps the Node object and its Lease.
type heartbeat struct {
	node nodeInput
	api  nodeAPI
	log  *slog.Logger
	// read gives fresh facts.
	read func() (facts, error)
	// hostState tells each change: nil when legiond answers, else why not.
	hostState chan error
	// registered is closed once the server has the node.
	registered chan struct{}

	hostErr   error
	hostSince time.Time
	last      *v1.Node
	lease     *coordinationv1.Lease
	// renewed is the last renewal, stated the last status.
	renewed, stated time.Time
	// failed: the server did not hear the last beat, and may have judged.
	failed  bool
	missing bool
}

// Run registers the node and keeps it until ctx ends.
func (h *heartbeat) Run(ctx context.Context) {
	h.hostErr, h.hostSince = fmt.Errorf("legiond has not answered yet"), time.Now()
	h.awaitHost(ctx)
	if !h.register(ctx) {
		return
	}
	close(h.registered)
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-h.hostState:
			h.setHost(err)
		case <-wait.C:
		}
		wait.Reset(h.beat(ctx))
	}
}

// awaitHost gives legiond a moment to answer, so that the node is Ready from
// its first second.
func (h *heartbeat) awaitHost(ctx context.Context) {
	patience := time.NewTimer(hostPatience)
	defer patience.Stop()
	for h.hostErr != nil {
		select {
		case <-ctx.Done():
			return
		case err := <-h.hostState:
			h.setHost(err)
		case <-patience.C:
			return
		}
	}
}

func (h *heartbeat) setHost(err error) {
	if (err == nil) != (h.hostErr == nil) {
		h.hostSince = time.Now()
	}
	h.hostErr = err
}

// register creates the Node, or brings the one that exists up to date, and does
// not give up.
func (h *heartbeat) register(ctx context.Context) bool {
	last := ""
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 3*time.Second) {
		err := h.tryRegister(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if text := err.Error(); text != last {
			h.log.Warn("cannot register the node, trying again", "node", h.node.Name, "error", err)
			last = text
		}
		select {
		case <-ctx.Done():
			return false
		case err := <-h.hostState:
			h.setHost(err)
		case <-time.After(wait):
		}
	}
}

func (h *heartbeat) tryRegister(ctx context.Context) error {
	if err := h.refresh(); err != nil {
		return err
	}
	node := makeNode(h.node)
	made, err := h.api.CreateNode(ctx, node)
	if err == nil {
		h.last, h.stated = made, h.node.Now
		return nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	old, err := h.api.GetNode(ctx, h.node.Name)
	if err != nil {
		return err
	}
	h.last = old
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": node.Labels}})
	if err != nil {
		return err
	}
	for name, value := range node.Labels {
		if old.Labels[name] != value {
			if _, err := h.api.PatchNode(ctx, h.node.Name, patch); err != nil {
				return err
			}
			break
		}
	}
	return h.state(ctx)
}

// refresh reads the facts and judges the host.
func (h *heartbeat) refresh() error {
	f, err := h.read()
	if err != nil {
		return err
	}
	h.node.Facts, h.node.Now = f, time.Now()
	h.node.HostTrouble = ""
	if h.hostErr != nil && (h.last == nil || h.node.Now.Sub(h.hostSince) >= hostPatience) {
		h.node.HostTrouble = h.hostErr.Error()
	}
	return nil
}

// state writes the node's status.
func (h *heartbeat) state(ctx context.Context) error {
	want := makeNode(h.node)
	want.Status.Conditions = nodeConditions(h.node, h.last.Status.Conditions)
	patch, err := json.Marshal(map[string]any{"status": merged(want.Status, map[string]any{
		"addresses": replaced(want.Status.Addresses),
	})})
	if err != nil {
		return err
	}
	node, err := h.api.PatchNode(ctx, h.node.Name, patch, "status")
	if err != nil {
		return err
	}
	h.last, h.stated = node, h.node.Now
	return nil
}

// beat renews the lease and the status where they are due, and says when to
// come back.
func (h *heartbeat) beat(ctx context.Context) time.Duration {
	now := time.Now()
	err := h.refresh()
	if err == nil {
		changed := !sameConditions(known(h.last.Status.Conditions), nodeConditions(h.node, nil))
		unheard := h.failed || (!h.renewed.IsZero() && now.Sub(h.renewed) > silent)
		if changed || unheard || now.Sub(h.stated) >= statusEvery {
			err = h.state(ctx)
		}
	}
	if err == nil && now.Sub(h.renewed) >= renewEvery {
		err = h.renew(ctx, now)
		if err != nil && h.lease == nil {
			// The lease is another one now: is the node still ours?
			if err = h.state(ctx); err == nil {
				err = h.renew(ctx, now)
			}
		}
	}
	wasFailing := h.failed
	h.failed = err != nil
	switch {
	case apierrors.IsNotFound(err):
		if !h.missing {
			h.log.Error("the node was deleted from the server; restart legion-agent to register it again", "node", h.node.Name)
		}
		h.missing = true
		return renewEvery
	case err != nil:
		if ctx.Err() == nil && !wasFailing {
			h.log.Warn("cannot tell the server that the node lives, trying again", "node", h.node.Name, "error", err)
		}
		return time.Second
	}
	h.missing = false
	if h.hostErr != nil && h.node.HostTrouble == "" {
		return max(time.Until(h.hostSince.Add(hostPatience)), time.Millisecond)
	}
	return max(time.Until(h.renewed.Add(renewEvery)), time.Millisecond)
}

// known are the conditions that the agent writes, in its order.
func known(all []v1.NodeCondition) []v1.NodeCondition {
	var out []v1.NodeCondition
	for _, kind := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure, v1.NodeReady} {
		for _, c := range all {
			if c.Type == kind {
				out = append(out, c)
			}
		}
	}
	return out
}

// renew writes the node's lease.
func (h *heartbeat) renew(ctx context.Context, now time.Time) error {
	if h.lease == nil {
		lease, err := h.api.GetLease(ctx, h.node.Name)
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		if err == nil {
			h.lease = lease
		}
	}
	at, name, seconds := metav1.NewMicroTime(now), h.node.Name, int32(leaseDuration/time.Second)
	owners := []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: h.last.UID}}
	if h.lease == nil {
		lease, err := h.api.CreateLease(ctx, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Name: name, Namespace: v1.NamespaceNodeLease, OwnerReferences: owners,
			},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &at},
		})
		if err != nil {
			return notANode(err)
		}
		h.lease, h.renewed = lease, now
		return nil
	}
	next := h.lease.DeepCopy()
	next.ManagedFields = nil
	next.OwnerReferences = owners
	next.Spec.RenewTime = &at
	next.Spec.HolderIdentity, next.Spec.LeaseDurationSeconds = &name, &seconds
	lease, err := h.api.UpdateLease(ctx, next)
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		// Read, or make, it anew at the next beat.
		h.lease = nil
		return fmt.Errorf("lease %s/%s was changed by another: %s", v1.NamespaceNodeLease, h.node.Name, err)
	}
	if err != nil {
		return err
	}
	h.lease, h.renewed = lease, now
	return nil
}

// notANode keeps the answer "no such namespace" apart from "no such node".
func notANode(err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot make the lease: %s", err)
	}
	return err
}
