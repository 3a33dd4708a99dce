package podview

import (
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"legion.dev/legion/internal/service"
)

// Refused is why a pod is not given other resources, in the words of the
// condition PodResizePending; an empty reason is that nothing is refused.
type Refused struct{ Reason, Message string }

// Over lists the conditions of the agent's that were and are no more.
func Over(was, is *v1.PodStatus) []v1.PodConditionType {
	var out []v1.PodConditionType
	for _, c := range was.Conditions {
		if Owns(c.Type) && Condition(is, c.Type) == nil {
			out = append(out, c.Type)
		}
	}
	return out
}

// resized shows what the containers have been given, what of it is in force, and
// how far a change of it is.
func resized(in Input, prev, s *v1.PodStatus) {
	var underway, impossible []string
	each := func(list, before []v1.ContainerStatus) {
		for i := range list {
			c := &list[i]
			want, ok := in.Allocated[c.Name]
			if !ok {
				continue
			}
			c.AllocatedResources, c.Resources = want.Requests, nil
			if len(want.Requests)+len(want.Limits) == 0 {
				continue
			}
			c.Resources = want.DeepCopy()
			old := find(before, c.Name)
			if c.State.Running == nil || old == nil || old.Resources == nil || apiequality.Semantic.DeepEqual(*old.Resources, want) {
				continue
			}
			var why []string
			if c.Resources, why = inForce(in, c.Name, old.Resources, &want); c.Resources == nil {
				c.Resources = old.Resources.DeepCopy()
				underway = append(underway, c.Name)
			}
			impossible = append(impossible, why...)
		}
	}
	each(s.InitContainerStatuses, prev.InitContainerStatuses)
	each(s.ContainerStatuses, prev.ContainerStatuses)
	tell := func(kind v1.PodConditionType, is bool, reason, message string) {
		if !is || s.Phase == v1.PodSucceeded || s.Phase == v1.PodFailed {
			s.Conditions = slices.DeleteFunc(s.Conditions, func(c v1.PodCondition) bool { return c.Type == kind })
			return
		}
		setCondition(s, v1.PodCondition{Type: kind, Status: v1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: in.Pod.Generation}, in.Now)
	}
	tell(v1.PodResizePending, in.Refused.Reason != "", in.Refused.Reason, in.Refused.Message)
	if len(impossible) > 0 {
		tell(v1.PodResizeInProgress, true, v1.PodReasonError, "this machine cannot: "+strings.Join(impossible, "; "))
	} else {
		tell(v1.PodResizeInProgress, len(underway) > 0, "", "")
	}
}

// inForce are the resources that what runs of a container has, and what of the
// new ones is not to be had; nil where it has not been tried yet.
func inForce(in Input, name string, old, want *v1.ResourceRequirements) (*v1.ResourceRequirements, []string) {
	st := serviceOf(in.Group, name)
	if st == nil || in.Spec == nil {
		return nil, nil
	}
	i := slices.IndexFunc(in.Spec.Services, func(s service.Service) bool { return s.Name == name })
	if i < 0 {
		return nil, nil
	}
	spec := &in.Spec.Services[i]
	if !reflect.DeepEqual(st.Bounds, spec.Resources) || st.Fixed != spec.Fixed {
		return nil, nil
	}
	has := want.DeepCopy()
	if spec.Resources == nil {
		return has, nil // there is nothing to set
	}
	var impossible []string
	keep := func(directive string, resource v1.ResourceName, old, want, has v1.ResourceList) {
		was, is := old[resource], want[resource]
		for _, lost := range st.Lost {
			if !was.Equal(is) && (strings.HasPrefix(lost, directive+"=") || strings.HasPrefix(lost, "cgroup:")) {
				has[resource] = was
				impossible = append(impossible, name+": "+lost)
				return
			}
		}
	}
	keep("CPUQuota", v1.ResourceCPU, old.Limits, want.Limits, has.Limits)
	keep("MemoryMax", v1.ResourceMemory, old.Limits, want.Limits, has.Limits)
	keep("CPUShares", v1.ResourceCPU, old.Requests, want.Requests, has.Requests)
	return has, impossible
}
