package agentd

import (
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// phase is a condition of a pod.
func phase(want v1.PodPhase) func(*v1.Pod) bool {
	return func(p *v1.Pod) bool { return p != nil && p.Status.Phase == want }
}

// initContainers: each waits for the one before, one that fails is run again,
// the sidecar lives until the container has ended, and the pod has succeeded.
func (f *fleet) initContainers(t *testing.T) {
	file := f.path("init")
	f.create("init", func(p *v1.Pod) {
		always := v1.ContainerRestartPolicyAlways
		p.Spec.RestartPolicy = v1.RestartPolicyOnFailure
		p.Spec.InitContainers = []v1.Container{
			{Name: "first", Image: "none", Command: []string{"sh", "-c", "echo first >>" + file + "; test $(wc -l <" + file + ") = 2"}},
			{
				Name: "side", Image: "none", RestartPolicy: &always, Command: []string{"sh", "-c", "trap 'echo side ends >>" + file + "; exit 0' TERM; echo side >>" + file + "; while :; do sleep 1000 & wait $!; done"},
				StartupProbe: &v1.Probe{PeriodSeconds: 1, ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"grep", "-q", "side", file}}}},
			},
			{Name: "last", Image: "none", Command: []string{"sh", "-c", "echo last | tee -a " + file}},
		}
	}, "sh", "-c", "echo main >>"+file)
	p := f.pod("init", phase(v1.PodSucceeded))
	const want = "first\nfirst\nside\nlast\nmain\nside ends\n"
	if text, err := os.ReadFile(file); err != nil || string(text) != want {
		t.Errorf("it went %q, %v", text, err)
	}
	if c := p.Status.InitContainerStatuses[0]; c.RestartCount != 1 || !c.Ready || c.State.Terminated == nil || c.State.Terminated.Reason != "Completed" {
		t.Errorf("first: %+v", c)
	}
	if text, err := f.log("init", v1.PodLogOptions{Container: "last", Follow: true}); err != nil || text != "last\n" {
		t.Errorf("log: %q, %v", text, err)
	}

	f.create("initfails", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.InitContainers = []v1.Container{{Name: "first", Image: "none", Command: []string{"sh", "-c", "exit 3"}}}
	}, "sh", "-c", "echo never >>"+file)
	p = f.pod("initfails", phase(v1.PodFailed))
	if c := p.Status.ContainerStatuses[0]; c.State.Waiting == nil || c.State.Waiting.Reason != "PodInitializing" || p.Status.InitContainerStatuses[0].State.Terminated.ExitCode != 3 {
		t.Errorf("status: %+v", p.Status)
	}
	if text, _ := os.ReadFile(file); strings.Contains(string(text), "never") {
		t.Error("the container has run")
	}
}
