package placement

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func pod(cpu string, hostNetwork bool, ports ...corev1.ContainerPort) *corev1.Pod {
	c := corev1.Container{Ports: ports}
	if cpu != "" {
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	}
	return &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: hostNetwork, Containers: []corev1.Container{c}}}
}

func TestFits(t *testing.T) {
	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourcePods: resource.MustParse("2")}
	udp := corev1.ContainerPort{ContainerPort: 53, Protocol: corev1.ProtocolUDP}
	tcp := corev1.ContainerPort{ContainerPort: 53}
	here := corev1.ContainerPort{ContainerPort: 1, HostPort: 53, HostIP: "127.0.0.1"}
	there := corev1.ContainerPort{ContainerPort: 1, HostPort: 53, HostIP: "10.0.0.1"}
	for _, c := range []struct {
		name   string
		want   *corev1.Pod
		room   corev1.ResourceList
		others []*corev1.Pod
		reason string
	}{
		{"empty node", pod("2", false), room, nil, ""},
		{"beside another", pod("1500m", false), room, []*corev1.Pod{pod("500m", false)}, ""},
		{"too big", pod("1500m", false), room, []*corev1.Pod{pod("1", false)}, "Insufficient cpu: 1500m requested, 1 of 2 free"},
		{"asks for nothing on a full node", pod("", false), room, []*corev1.Pod{pod("3", false)}, ""},
		{"too many", pod("", false), room, []*corev1.Pod{pod("", false), pod("", false)}, "Too many pods: the node takes 2"},
		{"a node that says nothing", pod("", false), nil, []*corev1.Pod{pod("", false)}, ""},
		{"asks a node that says nothing", pod("1", false), nil, nil, "Insufficient cpu: 1 requested, the node offers none"},
		{"same port, own networks", pod("", false, tcp), room, []*corev1.Pod{pod("", false, tcp)}, ""},
		{"same port, host network", pod("", true, tcp), room, []*corev1.Pod{pod("", true, tcp)}, "Port in use: TCP 53 is taken by another pod of the node"},
		{"another protocol", pod("", true, tcp), room, []*corev1.Pod{pod("", true, udp)}, ""},
		{"another address", pod("", false, here), room, []*corev1.Pod{pod("", false, there)}, ""},
		{"one address and all", pod("", false, here), room, []*corev1.Pod{pod("", true, tcp)}, "Port in use: TCP 127.0.0.1:53 is taken by another pod of the node"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var others []Use
			for _, o := range c.others {
				others = append(others, Of(o))
			}
			node := &corev1.Node{Status: corev1.NodeStatus{Allocatable: c.room}}
			if got := Fits(Of(c.want), node, others); got != c.reason {
				t.Errorf("got  %q\nwant %q", got, c.reason)
			}
		})
	}
}

func TestOccupies(t *testing.T) {
	p := pod("1", false)
	for phase, want := range map[corev1.PodPhase]bool{
		corev1.PodPending: true, corev1.PodRunning: true, corev1.PodUnknown: true, corev1.PodFailed: false, corev1.PodSucceeded: false,
	} {
		p.Status.Phase = phase
		if Occupies(p) != want {
			t.Errorf("%s: %v", phase, !want)
		}
	}
}
