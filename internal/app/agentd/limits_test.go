package agentd

import (
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// limits: a container that wants more memory than its limit ends as OOMKilled.
func (f *fleet) limits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root keeps limits")
	}
	some := v1.ResourceList{v1.ResourceMemory: resource.MustParse("24Mi"), v1.ResourceCPU: resource.MustParse("500m")}
	pod := f.create("limits", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.Containers[0].Resources = v1.ResourceRequirements{Limits: some, Requests: some}
	}, "sh", "-c", "head -c 200000000 /dev/zero | tail >/dev/null")
	p := f.pod("limits", func(p *v1.Pod) bool { return phase(v1.PodFailed)(p) || phase(v1.PodSucceeded)(p) })
	g, err := f.host.Group(f.ctx, "pod-"+string(pod.UID))
	if err != nil {
		t.Fatal(err)
	}
	if lost := strings.Join(g.Status.Services[0].Lost, "; "); strings.Contains(lost, "MemoryMax") || strings.Contains(lost, "cgroup:") {
		t.Skip("this machine keeps no memory limit: " + lost)
	}
	if e := p.Status.ContainerStatuses[0].State.Terminated; e == nil || e.Reason != "OOMKilled" || e.ExitCode != 137 {
		t.Errorf("it ended with %+v", e)
	}
	if p.Status.QOSClass != v1.PodQOSGuaranteed {
		t.Errorf("QoS class %s", p.Status.QOSClass)
	}
}
