package agent

import (
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"legion.dev/legion/internal/placement"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/podview"
)

// given are the resources that a pod had last: what its status says of the
// containers that have run, else what it asks for.
func given(pod *v1.Pod) podspec.Allocated {
	out := podspec.Asked(pod)
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if had := list[i].Resources; had != nil {
				out[list[i].Name] = *had
			}
		}
	}
	return out
}

// allocate gives a pod the resources that it asks for, if the node has them
// beside what the other pods have; else it says why not.
func (p *pods) allocate(r *record, now time.Time) {
	asked := podspec.Asked(r.pod)
	r.refused, r.resizeAt = podview.Refused{}, time.Time{}
	if apiequality.Semantic.DeepEqual(asked, r.allocated) {
		return
	}
	if r.refused = p.refuse(r, asked); r.refused.Reason == "" {
		r.allocated = asked
	} else if r.refused.Reason == v1.PodReasonDeferred {
		r.resizeAt = now.Add(lookEvery)
	}
}

func (p *pods) refuse(r *record, asked podspec.Allocated) podview.Refused {
	if !p.node.Root {
		for name := range asked {
			if !apiequality.Semantic.DeepEqual(asked[name].Limits, r.allocated[name].Limits) {
				return podview.Refused{Reason: v1.PodReasonInfeasible, Message: "legiond does not run as root on this node, so it cannot set limits"}
			}
		}
	}
	node, want := &v1.Node{Status: v1.NodeStatus{Allocatable: p.node.Allocatable}}, requests(r.pod)
	if why := placement.Fits(want, node, nil); why != "" {
		return podview.Refused{Reason: v1.PodReasonInfeasible, Message: "the node can never give that: " + why}
	}
	var others []placement.Use
	for _, o := range p.records {
		if o != r && o.pod != nil && !o.done() {
			others = append(others, requests(o.allocated.With(o.pod)))
		}
	}
	if why := placement.Fits(want, node, others); why != "" {
		return podview.Refused{Reason: v1.PodReasonDeferred, Message: "other pods have it now: " + why}
	}
	return podview.Refused{}
}

// requests are what a pod takes of a node but for ports, which it has already.
func requests(pod *v1.Pod) placement.Use {
	return placement.Use{Requests: placement.Of(pod).Requests}
}

// resizeAgain looks whether there is room by now.
func (p *pods) resizeAgain(r *record, now time.Time) {
	if r.pod == nil || r.group == nil || r.resizeAt.IsZero() || now.Before(r.resizeAt) {
		return
	}
	if p.allocate(r, now); r.refused.Reason == "" {
		p.compile(r)
	}
}
