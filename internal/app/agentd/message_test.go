package agentd

import (
	"os"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// messages: what a container says of its end, by its file or its log, is in the
// pod's status.
func (f *fleet) messages(t *testing.T) {
	if os.Geteuid() == 0 {
		f.create("file", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }, "sh", "-c", "echo out of paper >/dev/termination-log; exit 2")
		p := f.pod("file", phase(v1.PodFailed))
		if e := p.Status.ContainerStatuses[0].State.Terminated; e.Message != "out of paper\n" || e.ExitCode != 2 {
			t.Errorf("%+v", e)
		}
	}
	f.create("log", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.Containers[0].TerminationMessagePolicy = v1.TerminationMessageFallbackToLogsOnError
	}, "sh", "-c", "echo one; echo two >&2; exit 3")
	f.pod("log", func(p *v1.Pod) bool {
		if !phase(v1.PodFailed)(p) {
			return false
		}
		// The two streams have no order between them.
		m := p.Status.ContainerStatuses[0].State.Terminated.Message
		return m == "one\ntwo\n" || m == "two\none\n"
	})

	// On a busy machine it would be over before the process has said anything.
	f.create("late", func(*v1.Pod) {}, "sh", "-c", "echo here; exec sleep 1000")
	f.pod("late", ready)
	f.said(t, "late", "here\n")
	deadline := []byte(`{"spec":{"activeDeadlineSeconds":1}}`)
	if _, err := f.api.CoreV1().Pods("default").Patch(f.ctx, "late", types.MergePatchType, deadline, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	p := f.pod("late", phase(v1.PodFailed))
	if p.Status.Reason != "DeadlineExceeded" {
		t.Errorf("reason %q", p.Status.Reason)
	}
	if text, err := f.log("late", v1.PodLogOptions{Follow: true}); err != nil || text != "here\n" {
		t.Errorf("log: %q, %v", text, err)
	}
}
