// Package podspec compiles a Pod to a service.Group: containers become
// services that the host supervises. It is pure; what a pod asks for and does
// not get comes back as a list of field paths, never as silence.
package podspec

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/service"
)

// HostRuntime is the runtimeClassName of pods that run as processes of the host.
const HostRuntime = "host"

// PodAnnotation is the group's annotation that holds the Pod as JSON, so that
// agent and host know it while the server is away.
const PodAnnotation = "legion.dev/pod"

// PodReason values are what a blocked container waits with. The first three
// are the kubelet's words.
const (
	ConfigError     = "CreateContainerConfigError"
	CreateError     = "CreateContainerError"
	RunError        = "RunContainerError"
	RuntimeNotFound = "RuntimeHandlerNotFound"
	// Creating is no trouble: what the container needs is on its way; nor is
	// Initializing: init containers come first.
	Creating     = "ContainerCreating"
	Initializing = "PodInitializing"
)

// Node is what compiling needs to know of the node.
type Node struct {
	Name string
	// IP is the node's address, and that of its pods: they use its network.
	IP string
	// ServerHost and ServerPort are where the API is, for pods that ask it;
	// empty where that is not known.
	ServerHost, ServerPort string
	// Root says that the host starts processes as root unless told otherwise.
	Root bool
	// PodDir is where the pods' volumes lie.
	PodDir string
	// Hosts and Resolver are /etc/hosts and /etc/resolv.conf, for pods that
	// add to them (ReadsEtc).
	Hosts, Resolver string
	// ClusterDNS are the addresses of the cluster's DNS, where it has one, and
	// ClusterDomain the domain of its names; empty is the usual one.
	ClusterDNS    []string
	ClusterDomain string
	// PodPids is how many processes a pod may have; 0 is no limit.
	PodPids int64
	// Allocatable stands in for limits that a resourceFieldRef asks for and
	// the container does not set.
	Allocatable v1.ResourceList
	// OCI is the runtime of pods that run images, nil where there is none.
	OCI *ocispec.Runtime
	// Profiles are the seccomp profiles of the node that the pod names.
	Profiles map[string]ocispec.Profile
	// Images are those of the pod's containers, by the names in it;
	// VolumeImages those of its volumes, by the volumes' names.
	Images, VolumeImages map[string]Pulled
}

// Handlers are the runtime handlers of the node.
func (n Node) Handlers() []string {
	if n.OCI == nil {
		return []string{HostRuntime}
	}
	return []string{HostRuntime, OCIRuntime}
}

// Blocked says why a container cannot run at all, and what to do.
type Blocked struct {
	Container string
	Reason    string
	Message   string
}

// Report is what a pod asks for and does not get.
type Report struct {
	// NotHonoured are the paths of fields without effect on this node.
	NotHonoured []string
	// Quiet are those that every pod is given without asking: no alarm.
	Quiet []string
	// Remarks are what went otherwise than the pod may expect.
	Remarks []string `json:",omitempty"`
	// Blocked is empty where the group can run.
	Blocked []Blocked
	// Ephemeral are the ephemeral containers that cannot run; they hold back
	// nothing but themselves.
	Ephemeral []Blocked `json:",omitempty"`
	// Images are what the containers run, by their names.
	Images map[string]string `json:",omitempty"`
}

// GroupName is the name of a pod's group.
func GroupName(uid types.UID) string { return "pod-" + string(uid) }

// UID is the pod's UID of a group name, false where it is no pod's.
func UID(group string) (types.UID, bool) {
	uid, ok := strings.CutPrefix(group, "pod-")
	return types.UID(uid), ok && uid != ""
}

// Containers are all of a pod, the init containers first.
func Containers(pod *v1.Pod) []*v1.Container {
	var out []*v1.Container
	for i := range pod.Spec.InitContainers {
		out = append(out, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	return out
}

// Ephemeral are the ephemeral containers of a pod. They have fewer fields than
// others, but what they have is the same.
func Ephemeral(pod *v1.Pod) []v1.Container {
	out := make([]v1.Container, 0, len(pod.Spec.EphemeralContainers))
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, v1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	return out
}

// Sidecar says whether an init container stays beside the containers.
func Sidecar(init *v1.Container) bool {
	return init.RestartPolicy != nil && *init.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// Compile turns a pod into a group, with what is known of the objects it refers
// to. With anything in Report.Blocked the group must not be run.
func Compile(pod *v1.Pod, node Node, objects Objects) (service.Group, Report) {
	c := compiler{pod: pod, node: node, objects: objects}
	g := service.Group{
		Name:        GroupName(pod.UID),
		Description: "pod " + pod.Namespace + "/" + pod.Name,
		Source:      service.Source{Kind: service.FromPod},
		Annotations: map[string]string{PodAnnotation: encode(pod)},
		Boot:        pod.Spec.RestartPolicy != v1.RestartPolicyNever,
		Grace:       grace(pod),
	}
	if c.blockedAsWhole() {
		return g, c.report
	}
	c.podFields()
	if node.Root {
		c.volumes()
		g.Resources = c.podLimits()
	}
	for i := range pod.Spec.InitContainers {
		s := c.container(&pod.Spec.InitContainers[i], fmt.Sprintf("spec.initContainers[%d]", i))
		s.Stage = i + 1
		g.Services = append(g.Services, s)
	}
	for i := range pod.Spec.Containers {
		s := c.container(&pod.Spec.Containers[i], fmt.Sprintf("spec.containers[%d]", i))
		s.Stage = c.lastStage()
		g.Services = append(g.Services, s)
	}
	g.Services = append(g.Services, c.ephemeral()...)
	c.holdPIDs(&g)
	for _, path := range c.report.NotHonoured {
		g.Warnings = append(g.Warnings, service.Warning{Text: path + " is not honoured yet"})
	}
	return g, c.report
}

// lastStage is that of the containers, 0 where the group has no stages.
func (c *compiler) lastStage() int {
	if init := len(c.pod.Spec.InitContainers); init > 0 || RestartsAll(c.pod) {
		return init + 1
	}
	return 0
}

// Decode reads the pod that Compile kept with a group.
func Decode(g service.Group) (*v1.Pod, error) {
	text, ok := g.Annotations[PodAnnotation]
	if !ok {
		return nil, fmt.Errorf("group %s has no annotation %s", g.Name, PodAnnotation)
	}
	pod := &v1.Pod{}
	if err := json.Unmarshal([]byte(text), pod); err != nil {
		return nil, fmt.Errorf("group %s: annotation %s: %w", g.Name, PodAnnotation, err)
	}
	return pod, nil
}

func encode(pod *v1.Pod) string {
	slim := *pod
	slim.ManagedFields = nil
	slim.Status = v1.PodStatus{}
	text, err := json.Marshal(&slim)
	if err != nil {
		// A Pod that was decoded from the API encodes.
		return "{}"
	}
	return string(text)
}

// grace is how long the pod may take to end; at least a second, as upstream
// (pkg/kubelet/pod_workers.go) has it.
func grace(pod *v1.Pod) time.Duration {
	seconds := int64(v1.DefaultTerminationGracePeriodSeconds)
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		seconds = *s
	}
	return time.Duration(max(seconds, 1)) * time.Second
}

type compiler struct {
	pod     *v1.Pod
	node    Node
	objects Objects
	report  Report
	// sources are where the pod's volumes lie, by name.
	sources map[string]*service.Mount
	// target is the container whose processes an ephemeral one is to see.
	target string
}

func (c *compiler) block(container, reason, format string, args ...any) {
	c.report.Blocked = append(c.report.Blocked, Blocked{container, reason, fmt.Sprintf(format, args...)})
}

func (c *compiler) miss(format string, args ...any) {
	c.report.NotHonoured = append(c.report.NotHonoured, fmt.Sprintf(format, args...))
}

// blockedAsWhole finds what keeps every container from running.
func (c *compiler) blockedAsWhole() bool {
	spec := &c.pod.Spec
	class := ""
	if spec.RuntimeClassName != nil {
		class = *spec.RuntimeClassName
	}
	for _, ctr := range Containers(c.pod) {
		switch {
		case class == "" && c.node.OCI == nil:
			c.block(ctr.Name, RuntimeNotFound, "no runtime for image %q on this node: node %s has runtime handlers: %s; set runtimeClassName: %s and a command that exists on the node, or run the pod on a node with a container runtime",
				ctr.Image, c.node.Name, HostRuntime, HostRuntime)
		case class != HostRuntime && !(OCI(c.pod) && c.node.OCI != nil):
			c.block(ctr.Name, RuntimeNotFound, "no runtime handler for runtimeClassName %q on this node: node %s has runtime handlers: %s; set runtimeClassName: %s, or run the pod on a node with that handler",
				class, c.node.Name, strings.Join(c.node.Handlers(), ", "), HostRuntime)
		case spec.OS != nil && string(spec.OS.Name) != runtime.GOOS:
			c.block(ctr.Name, ConfigError, "spec.os.name is %q and node %s runs %s: select other nodes with nodeSelector kubernetes.io/os", spec.OS.Name, c.node.Name, runtime.GOOS)
		}
	}
	return len(c.report.Blocked) > 0
}
