package e2e

import (
	"context"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/kubectl/pkg/util/podutils"
)

func itoa(n int) string { return strconv.Itoa(n) }

// budget watches the pods of an app from a full list on, and after each event
// counts the nodes without an available pod. It returns the largest count when
// stop is called.
func (f *fleet) budget(t *testing.T, app string, nodes []string) (stop func() (worst, events int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	opts := metav1.ListOptions{LabelSelector: "app=" + app}
	list, err := f.client.CoreV1().Pods("default").List(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	opts.ResourceVersion = list.ResourceVersion
	w, err := f.client.CoreV1().Pods("default").Watch(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]*corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].Name] = &list.Items[i]
	}
	type result struct{ worst, events int }
	done := make(chan result, 1)
	go func() {
		var r result
		for ev := range w.ResultChan() {
			p, ok := ev.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			if ev.Type == watch.Deleted {
				delete(pods, p.Name)
			} else {
				pods[p.Name] = p
			}
			r.events++
			up := map[string]bool{}
			for _, p := range pods {
				if p.DeletionTimestamp == nil && podutils.IsPodReady(p) {
					up[p.Spec.NodeName] = true
				}
			}
			r.worst = max(r.worst, len(nodes)-len(up))
		}
		done <- r
	}()
	return func() (int, int) {
		w.Stop()
		cancel()
		r := <-done
		return r.worst, r.events
	}
}

func TestRollingUpdateKeepsItsBudget(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "roll", daemonSet("roll", "sh", "-c", `echo "colour=$COLOUR"; exec sleep 86421`))
	stop := f.budget(t, "roll", nodes)

	f.kubectl(t, "set", "env", "ds/roll", "COLOUR=green")
	f.kubectl(t, "rollout", "status", "ds/roll", "--timeout=60s")
	for node, p := range f.pods(t, "roll") {
		if out := f.kubectl(t, "logs", p.Name); !strings.Contains(out, "colour=green") {
			t.Errorf("%s says %q after the update", node, out)
		}
	}
	history := f.kubectl(t, "rollout", "history", "ds/roll")
	if !strings.Contains(history, "\n1 ") || !strings.Contains(history, "\n2 ") {
		t.Errorf("history lacks revisions 1 and 2:\n%s", history)
	}

	f.kubectl(t, "rollout", "undo", "ds/roll")
	f.kubectl(t, "rollout", "status", "ds/roll", "--timeout=60s")
	for node, p := range f.pods(t, "roll") {
		if out := f.kubectl(t, "logs", p.Name); !strings.Contains(out, "colour=\n") {
			t.Errorf("%s says %q after the undo", node, out)
		}
	}
	if history = f.kubectl(t, "rollout", "history", "ds/roll"); !strings.Contains(history, "\n3 ") || strings.Contains(history, "\n1 ") {
		t.Errorf("the undone revision should be 3 and 1 be gone:\n%s", history)
	}

	f.kubectl(t, "rollout", "restart", "ds/roll")
	f.kubectl(t, "rollout", "status", "ds/roll", "--timeout=60s")

	worst, events := stop()
	if worst != 1 {
		t.Errorf("up to %d nodes were without an available pod in %d events, want exactly maxUnavailable, 1", worst, events)
	}
	if events < 18 {
		t.Errorf("the watch saw %d events only: three rollouts over three nodes make more", events)
	}
	untilPids(t, 3, "sleep", "86421")
}
