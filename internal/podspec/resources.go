package podspec

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"legion.dev/legion/internal/service"
)

// limits are what a container may use; a limit of the whole pod is also each
// container's. nil is no limit.
func (c *compiler) limits(ctr *v1.Container) *service.Limits {
	limit := func(name v1.ResourceName) resource.Quantity {
		q := ctr.Resources.Limits[name]
		if r := c.pod.Spec.Resources; q.IsZero() && r != nil {
			q = r.Limits[name]
		}
		return q
	}
	l := bounds(limit(v1.ResourceCPU), limit(v1.ResourceMemory))
	switch request := ctr.Resources.Requests.Cpu(); {
	case !request.IsZero():
		l.CPUShares = shares(request)
	case c.asksCPU():
		l.CPUShares = minShares
	}
	if l == (service.Limits{}) {
		return nil
	}
	return &l
}

func (c *compiler) asksCPU() bool {
	for _, ctr := range Containers(c.pod) {
		if !ctr.Resources.Requests.Cpu().IsZero() {
			return true
		}
	}
	return false
}

// podLimits are what all containers may use together: the sum of their limits
// where each has one, as the kubelet has it (pkg/kubelet/cm, ResourceConfigForPod).
func (c *compiler) podLimits() *service.Limits {
	var none resource.Quantity
	limits := resourcehelper.PodLimits(c.pod, resourcehelper.PodResourcesOptions{})
	whole := func(name v1.ResourceName) resource.Quantity {
		if r := c.pod.Spec.Resources; r != nil && !r.Limits.Name(name, resource.DecimalSI).IsZero() {
			return r.Limits[name]
		}
		for _, ctr := range Containers(c.pod) {
			if ctr.Resources.Limits.Name(name, resource.DecimalSI).IsZero() {
				return none
			}
		}
		return limits[name]
	}
	l := bounds(whole(v1.ResourceCPU), whole(v1.ResourceMemory))
	requests := resourcehelper.PodRequests(c.pod, resourcehelper.PodResourcesOptions{})
	l.CPUShares = shares(requests.Cpu())
	if c.node.PodPids > 0 {
		l.TasksMax = &service.Amount{Value: uint64(c.node.PodPids)}
	}
	return &l
}

// bounds are those of a CPU and a memory limit. What is in memory stays there:
// a limit that swaps is none.
func bounds(cpu, memory resource.Quantity) service.Limits {
	var l service.Limits
	if !cpu.IsZero() {
		l.CPUQuota = uint64(max(cpu.MilliValue(), 10)) * 10
	}
	if !memory.IsZero() {
		l.MemoryMax, l.MemorySwapMax = &service.Amount{Value: uint64(memory.Value())}, &service.Amount{}
	}
	return l
}

// The kubelet's numbers (pkg/kubelet/cm/helpers_linux.go).
const (
	minShares = 2
	maxShares = 262144
)

// shares is the weight of a request: 1024 is one processor.
func shares(cpu *resource.Quantity) uint64 {
	return uint64(min(max(cpu.MilliValue()*1024/1000, minShares), maxShares))
}

// boundable says whether a limit can be kept.
func boundable(name v1.ResourceName) bool {
	return name == v1.ResourceCPU || name == v1.ResourceMemory || name == v1.ResourceEphemeralStorage
}

// Allocated are the resources that the node has given the containers of a pod,
// by their names; those of the others are the pod's own words.
type Allocated map[string]v1.ResourceRequirements

// Asked are the resources that a pod asks for.
func Asked(pod *v1.Pod) Allocated {
	out := Allocated{}
	for _, ctr := range Containers(pod) {
		out[ctr.Name] = ctr.Resources
	}
	return out
}

// With is the pod with those resources.
func (a Allocated) With(pod *v1.Pod) *v1.Pod {
	out := *pod
	for _, list := range []*[]v1.Container{&out.Spec.InitContainers, &out.Spec.Containers} {
		*list = slices.Clone(*list)
		for i := range *list {
			if given, ok := a[(*list)[i].Name]; ok {
				(*list)[i].Resources = given
			}
		}
	}
	return &out
}

// fixed are those resources of a container of which each change is a restart.
func fixed(ctr *v1.Container) string {
	var out []string
	for _, p := range ctr.ResizePolicy {
		if p.RestartPolicy == v1.RestartContainer {
			request, limit := ctr.Resources.Requests[p.ResourceName], ctr.Resources.Limits[p.ResourceName]
			out = append(out, fmt.Sprintf("%s=%s/%s", p.ResourceName, request.String(), limit.String()))
		}
	}
	return strings.Join(out, " ")
}
