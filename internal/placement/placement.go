// Package placement says whether a pod fits on one given node: resource
// requests against what the node has to give, host ports, and the number of
// pods. It is pure; choosing a node is not its business.
package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Use is what one pod takes from its node.
type Use struct {
	Requests corev1.ResourceList
	Ports    []Port
}

// Port is a port a pod takes on the host's own addresses.
type Port struct {
	Protocol corev1.Protocol
	// HostIP is empty or 0.0.0.0 for every address.
	HostIP string
	Port   int32
}

func (p Port) String() string {
	if p.HostIP == "" {
		return fmt.Sprintf("%s %d", p.Protocol, p.Port)
	}
	return fmt.Sprintf("%s %s:%d", p.Protocol, p.HostIP, p.Port)
}

// Of computes what a pod takes.
func Of(pod *corev1.Pod) Use {
	u := Use{Requests: resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})}
	for i := range pod.Spec.Containers {
		u.Ports = appendPorts(u.Ports, &pod.Spec.Containers[i], pod.Spec.HostNetwork)
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			u.Ports = appendPorts(u.Ports, c, pod.Spec.HostNetwork)
		}
	}
	return u
}

func appendPorts(ports []Port, c *corev1.Container, hostNetwork bool) []Port {
	for _, p := range c.Ports {
		port := p.HostPort
		if port == 0 && hostNetwork {
			port = p.ContainerPort
		}
		if port == 0 {
			continue
		}
		ports = append(ports, Port{Protocol: cmp.Or(p.Protocol, corev1.ProtocolTCP), HostIP: anyAddress(p.HostIP), Port: port})
	}
	return ports
}

func anyAddress(ip string) string {
	if ip == "0.0.0.0" || ip == "::" {
		return ""
	}
	return ip
}

// Occupies says whether a pod takes anything from its node: it does until it
// has ended.
func Occupies(pod *corev1.Pod) bool {
	return pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed
}

// Fits returns "" if a pod that takes want fits on the node beside others, or
// every reason why it does not. A node that does not state its pod capacity
// takes any number of pods.
func Fits(want Use, node *corev1.Node, others []Use) string {
	var reasons []string
	room := node.Status.Allocatable
	if most, ok := room[corev1.ResourcePods]; ok && int64(len(others))+1 > most.Value() {
		reasons = append(reasons, fmt.Sprintf("Too many pods: the node takes %d", most.Value()))
	}
	names := make([]corev1.ResourceName, 0, len(want.Requests))
	for name, q := range want.Requests {
		if !q.IsZero() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if short := shortOf(name, want.Requests[name], room, others); short != "" {
			reasons = append(reasons, short)
		}
	}
	for _, p := range want.Ports {
		if taken(p, others) {
			reasons = append(reasons, fmt.Sprintf("Port in use: %s is taken by another pod of the node", p))
		}
	}
	return strings.Join(reasons, "; ")
}

func shortOf(name corev1.ResourceName, want resource.Quantity, room corev1.ResourceList, others []Use) string {
	total, ok := room[name]
	if !ok {
		return fmt.Sprintf("Insufficient %s: %s requested, the node offers none", name, want.String())
	}
	free := total.DeepCopy()
	for i := range others {
		if q, ok := others[i].Requests[name]; ok {
			free.Sub(q)
		}
	}
	if want.Cmp(free) > 0 {
		return fmt.Sprintf("Insufficient %s: %s requested, %s of %s free", name, want.String(), free.String(), total.String())
	}
	return ""
}

func taken(p Port, others []Use) bool {
	for i := range others {
		for _, o := range others[i].Ports {
			if o.Port == p.Port && o.Protocol == p.Protocol && (o.HostIP == p.HostIP || o.HostIP == "" || p.HostIP == "") {
				return true
			}
		}
	}
	return false
}
