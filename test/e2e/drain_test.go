package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubectl/pkg/util/podutils"
)

// hostPod is a manifest of a pod that nobody looks after, on a node.
func hostPod(name, app, node string, command ...string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: %s}}
spec:
  nodeName: %s
  runtimeClassName: host
  terminationGracePeriodSeconds: 2
  automountServiceAccountToken: false
  containers: [{name: main, image: host, command: ["%s"]}]
---
`, name, app, node, strings.Join(command, `", "`))
}

// budgetFor is a manifest of a PodDisruptionBudget.
func budgetFor(app, bound string) string {
	return fmt.Sprintf(`apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: %s, namespace: default}
spec:
  selector: {matchLabels: {app: %s}}
  %s
---
`, app, app, bound)
}

// untilBudget waits until the status of a budget satisfies cond.
func (f *fleet) untilBudget(t *testing.T, name, what string, cond func(*policyv1.PodDisruptionBudget) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w, err := f.client.PolicyV1().PodDisruptionBudgets("default").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var last policyv1.PodDisruptionBudgetStatus
	for ev := range w.ResultChan() {
		if b, ok := ev.Object.(*policyv1.PodDisruptionBudget); ok {
			if last = b.Status; cond(b) {
				return
			}
		}
	}
	t.Fatalf("the budget %s: %s: not within 30s; last: %+v", name, what, last)
}

// allows says that so many pods are healthy of so many, and some may go.
func allows(healthy, expected, allowed int32) func(*policyv1.PodDisruptionBudget) bool {
	return func(b *policyv1.PodDisruptionBudget) bool {
		s := b.Status
		return s.ObservedGeneration == b.Generation && s.CurrentHealthy == healthy && s.ExpectedPods == expected && s.DisruptionsAllowed == allowed
	}
}

// evict asks once: client-go would go on asking where it is told to.
func (f *fleet) evict(t *testing.T, pod string) error {
	t.Helper()
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "default"}}
	return f.client.CoreV1().RESTClient().Post().MaxRetries(0).Namespace("default").Resource("pods").Name(pod).SubResource("eviction").
		Body(eviction).Do(t.Context()).Error()
}

// heldUp says that a budget has refused an eviction, in upstream's words.
func heldUp(err error) bool {
	return apierrors.IsTooManyRequests(err) && apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) &&
		strings.Contains(err.Error(), "Cannot evict pod as it would violate the pod's disruption budget.")
}

// kubectl drain waits for a budget, asks again, and ends when another pod is
// ready; a DaemonSet's pod stays.
func TestDrainWaitsForBudget(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "stays", daemonSet("stays", "sleep", "86441"))
	f.apply(t, budgetFor("web", "minAvailable: 2")+
		hostPod("web-1", "web", "n1", "sleep", "86442")+hostPod("web-2", "web", "n2", "sleep", "86442"))
	t.Cleanup(func() {
		_, _ = f.tryKubectl("", "uncordon", "n1")
		f.kubectl(t, "delete", "pdb", "web")
		f.kubectl(t, "delete", "pods", "-l", "app=web", "--timeout=30s")
	})
	f.untilBudget(t, "web", "both are healthy", allows(2, 2, 0))
	if out := f.kubectl(t, "get", "pdb", "web", "--no-headers"); strings.Join(strings.Fields(out)[:4], " ") != "web 2 N/A 0" {
		t.Errorf("kubectl get pdb: %q", out)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	name, args := f.kubectlCommand("drain", "n1", "--force", "--ignore-daemonsets")
	drain := exec.CommandContext(ctx, name, args...)
	read, write := io.Pipe()
	drain.Stdout, drain.Stderr = write, write
	if err := drain.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- drain.Wait()
		_ = write.Close()
	}()
	refused := false
	var said []string
	for lines := bufio.NewScanner(read); lines.Scan(); {
		said = append(said, lines.Text())
		if refused || !strings.Contains(lines.Text(), "Cannot evict pod as it would violate the pod's disruption budget.") {
			continue
		}
		refused = true
		if pod := f.pods(t, "web")["n1"]; pod.Name != "web-1" || !podutils.IsPodReady(&pod) {
			t.Errorf("web-1 is not there any more: %v", pod.Status)
		}
		f.apply(t, hostPod("web-3", "web", "n3", "sleep", "86442"))
	}
	if err := <-ended; err != nil || !refused {
		t.Fatalf("drain: refused %t, %v:\n%s", refused, err, strings.Join(said, "\n"))
	}
	f.untilBudget(t, "web", "two are left", allows(2, 2, 0))
	if pods := f.pods(t, "web"); len(pods) != 2 || !podutils.IsPodReady(new(pods["n2"])) || !podutils.IsPodReady(new(pods["n3"])) {
		t.Errorf("after the drain: %v", pods)
	}
	if pod := f.pods(t, "stays")["n1"]; !podutils.IsPodReady(&pod) {
		t.Errorf("the DaemonSet's pod did not stay: %v", pod.Status)
	}
}

// An eviction is refused as long as a budget does not allow it, and a budget
// that cannot be reckoned allows none: a DaemonSet has no scale.
func TestBudgetsOfDaemonSets(t *testing.T) {
	f := shareFleet(t)
	f.apply(t, budgetFor("held", "minAvailable: 2"))
	t.Cleanup(func() { f.kubectl(t, "delete", "pdb", "held") })
	f.deploy(t, "held", daemonSet("held", "sleep", "86443"))
	f.untilBudget(t, "held", "one of three may go", allows(3, 3, 1))
	pods := f.pods(t, "held")
	// The first pod does not go, and has no successor, before its agent is back.
	agent := []string{"-H" + f.socket(""), "legion-agent-n1.service"}
	mustRun(t, time.Minute, "legion", append([]string{"stop"}, agent...)...)
	if err := f.evict(t, pods["n1"].Name); err != nil {
		t.Errorf("the first eviction: %v", err)
	}
	if err := f.evict(t, pods["n2"].Name); !heldUp(err) {
		t.Errorf("the second eviction: %v", err)
	}
	mustRun(t, time.Minute, "legion", append([]string{"start"}, agent...)...)
	f.onNodes(t, "held", "n1", "n2", "n3")
	f.untilBudget(t, "held", "one of three may go again", allows(3, 3, 1))

	f.apply(t, budgetFor("held", "minAvailable: null\n  maxUnavailable: 1"))
	f.untilBudget(t, "held", "why it is not known", func(b *policyv1.PodDisruptionBudget) bool {
		for _, c := range b.Status.Conditions {
			if c.Type == policyv1.DisruptionAllowedCondition && c.Reason == policyv1.SyncFailedReason {
				return c.Message == "daemonsets.apps does not implement the scale subresource"
			}
		}
		return false
	})
	if err := f.evict(t, f.pods(t, "held")["n2"].Name); !heldUp(err) {
		t.Errorf("without a scale: %v", err)
	}
}
