package agent

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/podspec"
)

// kubeletVersion is the API that the agent speaks, and by whom.
const kubeletVersion = "v1.37.2-legion"

// maxPods is the kubelet's default.
const maxPods = 110

// HostLabel is a label of the hosts that are nodes of a Kubernetes cluster, and
// the key of their taint.
const HostLabel = "legion.dev/host"

// nodeInput is all that a Node object is made of.
type nodeInput struct {
	Name, IP, Version string
	Labels            map[string]string
	Taints            []v1.Taint
	// Port is where the kubelet's API is served, 0 for nowhere.
	Port  int
	Facts facts
	// HostTrouble is why pods cannot run here now, empty if they can.
	HostTrouble string
	// Images: the node runs images, too.
	Images bool
	// Least must be free of memory, disk and processes; nil is the default.
	Least Eviction
	Now   time.Time
}

// makeNode is the Node object as it is registered.
func makeNode(in nodeInput) *v1.Node {
	node := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: in.Name, Labels: nodeLabels(in)},
		Spec:       v1.NodeSpec{Taints: in.Taints},
		Status: v1.NodeStatus{
			DaemonEndpoints: v1.NodeDaemonEndpoints{KubeletEndpoint: v1.DaemonEndpoint{Port: int32(in.Port)}},
			Capacity:        capacity(in.Facts),
			Allocatable:     capacity(in.Facts),
			Addresses: []v1.NodeAddress{
				{Type: v1.NodeInternalIP, Address: in.IP},
				{Type: v1.NodeHostName, Address: in.Name},
			},
			NodeInfo: v1.NodeSystemInfo{
				MachineID: in.Facts.MachineID, SystemUUID: in.Facts.MachineID, BootID: in.Facts.BootID,
				KernelVersion: in.Facts.Kernel, OSImage: in.Facts.OSImage,
				ContainerRuntimeVersion: "legion://" + in.Version,
				KubeletVersion:          kubeletVersion,
				OperatingSystem:         runtime.GOOS, Architecture: runtime.GOARCH,
			},
			RuntimeHandlers: handlers(in.Images),
		},
	}
	node.Status.Conditions = nodeConditions(in, nil)
	return node
}

// handlers are the node's runtimes; that of no name is of pods without a class.
func handlers(images bool) []v1.NodeRuntimeHandler {
	names := []string{podspec.HostRuntime}
	if images {
		names = []string{"", podspec.HostRuntime, podspec.OCIRuntime}
	}
	var out []v1.NodeRuntimeHandler
	for _, n := range names {
		out = append(out, v1.NodeRuntimeHandler{Name: n, Features: &v1.NodeRuntimeHandlerFeatures{UserNamespaces: new(n != podspec.HostRuntime)}})
	}
	return out
}

func nodeLabels(in nodeInput) map[string]string {
	labels := map[string]string{
		v1.LabelHostname:   in.Name,
		v1.LabelOSStable:   runtime.GOOS,
		v1.LabelArchStable: runtime.GOARCH,
	}
	maps.Copy(labels, in.Labels)
	return labels
}

func capacity(f facts) v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(f.CPUs), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(f.MemoryTotal, resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(maxPods, resource.DecimalSI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(f.DiskTotal, resource.BinarySI),
	}
}

// nodeConditions are the kubelet's four, with the transition times of prev.
func nodeConditions(in nodeInput, prev []v1.NodeCondition) []v1.NodeCondition {
	var out []v1.NodeCondition
	add := func(kind v1.NodeConditionType, status bool, reason, message string) {
		c := v1.NodeCondition{
			Type: kind, Status: v1.ConditionFalse, Reason: reason, Message: message,
			LastHeartbeatTime: metav1.NewTime(in.Now), LastTransitionTime: metav1.NewTime(in.Now),
		}
		if status {
			c.Status = v1.ConditionTrue
		}
		if i := slices.IndexFunc(prev, func(p v1.NodeCondition) bool { return p.Type == kind }); i >= 0 && prev[i].Status == c.Status {
			c.LastTransitionTime = prev[i].LastTransitionTime
		}
		out = append(out, c)
	}
	short := in.Least.pressures(in.Facts)
	pressure := func(kind v1.NodeConditionType, name, enough string) {
		if why := short[kind]; why != "" {
			add(kind, true, "LegionHasInsufficient"+name, why)
			return
		}
		add(kind, false, "LegionHasSufficient"+name, "the node has enough "+enough)
	}
	pressure(v1.NodeMemoryPressure, "Memory", "memory")
	pressure(v1.NodeDiskPressure, "Disk", "space and inodes on the disk of the agent's directory")
	pressure(v1.NodePIDPressure, "PID", "process numbers")
	if in.HostTrouble == "" {
		add(v1.NodeReady, true, "LegionReady", "legiond answers and runs pods")
	} else {
		add(v1.NodeReady, false, "HostUnreachable", in.HostTrouble)
	}
	return out
}

// sameConditions compares all but the times.
func sameConditions(a, b []v1.NodeCondition) bool {
	return slices.EqualFunc(a, b, func(x, y v1.NodeCondition) bool {
		return x.Type == y.Type && x.Status == y.Status && x.Reason == y.Reason && x.Message == y.Message
	})
}

// allocatable is what a pod is told of the node's size.
func allocatable(f facts) v1.ResourceList { return capacity(f) }

// checkLabels refuses what the API server would.
func checkLabels(labels map[string]string) error {
	for name := range labels {
		switch name {
		case v1.LabelHostname, v1.LabelOSStable, v1.LabelArchStable:
			return fmt.Errorf("label %s is set by the agent itself: leave it out of --labels", name)
		}
	}
	return nil
}
