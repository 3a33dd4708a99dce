package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/internal/hostapi"
)

var nodes = []string{"n1", "n2", "n3"}

func TestThreeOfThree(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "everywhere", daemonSet("everywhere", "sleep", "86401"))

	clients := map[string][]string{"built-in": {"legion", "kubectl", "--kubeconfig", f.dir + "/admin.kubeconfig"}}
	if path, err := exec.LookPath("kubectl"); err == nil {
		clients["stock"] = []string{path, "--kubeconfig", f.dir + "/admin.kubeconfig"}
	}
	for name, argv := range clients {
		t.Run(name, func(t *testing.T) {
			args := append(argv[1:], "get", "ds,pods,nodes", "-A", "--no-headers")
			out := mustRun(t, 30*time.Second, argv[0], args...)
			var set string
			pods, readyNodes := 0, 0
			for _, line := range strings.Split(out, "\n") {
				switch {
				case strings.Contains(line, "daemonset.apps/everywhere"):
					set = strings.Join(strings.Fields(line)[2:7], " ")
				case strings.Contains(line, "pod/everywhere-") && strings.Contains(line, "1/1") && strings.Contains(line, "Running"):
					pods++
				case strings.Contains(line, " node/n") && strings.Contains(line, " Ready "):
					readyNodes++
				}
			}
			if set != "3 3 3 3 3" || pods != 3 || readyNodes < 3 {
				t.Errorf("want 3/3 everywhere, got set %q, %d pods, %d nodes:\n%s", set, pods, readyNodes, out)
			}
		})
	}
	if pids := pidsOf("sleep", "86401"); len(pids) != 3 {
		t.Errorf("want 3 processes, got %v", pids)
	}
}

// TestCrashedDaemonRunsAgainAtOnce: there is no backoff after a first crash. That
// a new run begins within 100 ms is held against the fastest of the nodes: any one
// of them may have been kept waiting by whatever else the machine does.
func TestCrashedDaemonRunsAgainAtOnce(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "crash", daemonSet("crash", "sleep", "86402"))
	pods := f.pods(t, "crash")
	fastest := time.Hour
	for node, pod := range pods {
		took := f.crash(t, pod)
		t.Logf("%s: new run %s after the kill", node, took)
		fastest = min(fastest, took)
	}
	if fastest > 100*time.Millisecond {
		t.Errorf("the new runs began %s after the kill at best, want within 100ms", fastest)
	}
	f.untilPods(t, "crash", patience, "restart count 1", func(now map[string]*corev1.Pod) bool {
		for _, p := range now {
			if p.UID != pods[p.Spec.NodeName].UID || len(p.Status.ContainerStatuses) != 1 || p.Status.ContainerStatuses[0].RestartCount != 1 || !podutils.IsPodReady(p) {
				return false
			}
		}
		return len(now) == len(pods)
	})
	out := f.kubectl(t, "get", "pod", pods["n2"].Name, "--no-headers")
	if fields := strings.Fields(out); len(fields) < 4 || fields[3] != "1" {
		t.Errorf("kubectl get pods shows %q, want restart count 1", out)
	}
}

// crash kills a pod's process, and says how long after that its next run began.
func (f *fleet) crash(t *testing.T, pod corev1.Pod) time.Duration {
	t.Helper()
	before := mainRun(t, f.groupOf(t, pod))
	kill9(t, before.PID)
	killed := time.Now()
	g := untilGroup(t, f.host(pod.Spec.NodeName), "pod-"+string(pod.UID), patience, "a new run", func(g *hostapi.Group) bool {
		m := g.Status.Services[0].Main
		return m != nil && m.Number > before.Number && m.Exit == nil
	})
	return mainRun(t, *g).Started.Sub(killed)
}

func TestNodesComeAndGo(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "cover", daemonSet("cover", "sleep", "86403"))

	// A node's Ready and its pod's Ready, each by the time a watch tells.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	readyAt := make(chan time.Time, 1)
	go func() {
		w, err := f.client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "n4").String()})
		if err != nil {
			return
		}
		defer w.Stop()
		for ev := range w.ResultChan() {
			if n, ok := ev.Object.(*corev1.Node); ok && nodeReady(n) {
				readyAt <- time.Now()
				return
			}
		}
	}()
	added := make(chan error, 1)
	go func() {
		_, err := run(time.Minute, "legion", "nodes", "add", "n4", "--dir", f.dir)
		added <- err
	}()
	covered := f.untilPods(t, "cover", 30*time.Second, "a ready pod on n4", func(pods map[string]*corev1.Pod) bool {
		for _, p := range pods {
			if p.Spec.NodeName == "n4" && podutils.IsPodReady(p) {
				return true
			}
		}
		return false
	})
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	select {
	case at := <-readyAt:
		if took := covered.Sub(at); took > time.Second {
			t.Errorf("n4 was covered %s after it was Ready, want within 1s", took)
		} else {
			t.Logf("n4 covered %s after Ready", took)
		}
	case <-ctx.Done():
		t.Fatal("n4 never became Ready")
	}

	mustRun(t, time.Minute, "legion", "nodes", "remove", "n4", "--dir", f.dir)
	list, err := f.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n4"})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("pods of the removed node: %d, %v", len(list.Items), err)
	}
	if _, err := f.client.CoreV1().Nodes().Get(t.Context(), "n4", metav1.GetOptions{}); err == nil {
		t.Error("the removed node is still in the API")
	}
	if left := processesUnder("nodes/n4/"); len(left) > 0 {
		t.Errorf("processes of the removed node: %v", left)
	}
}

// onNodes waits until an app runs, ready, on exactly these nodes.
func (f *fleet) onNodes(t *testing.T, app string, want ...string) {
	t.Helper()
	f.untilPods(t, app, 20*time.Second, fmt.Sprintf("%s on exactly %v", app, want), func(pods map[string]*corev1.Pod) bool {
		on := map[string]bool{}
		for _, p := range pods {
			if p.DeletionTimestamp != nil || !podutils.IsPodReady(p) {
				return false
			}
			on[p.Spec.NodeName] = true
		}
		if len(on) != len(want) || len(pods) != len(want) {
			return false
		}
		for _, n := range want {
			if !on[n] {
				return false
			}
		}
		return true
	})
}

func TestLabelsAndTaintsMoveDaemons(t *testing.T) {
	f := shareFleet(t)
	manifest := strings.Replace(daemonSet("labelled", "sleep", "86404"),
		"      runtimeClassName: host", "      nodeSelector: {disk: ssd}\n      runtimeClassName: host", 1)
	f.kubectl(t, "label", "node", "n1", "n2", "disk=ssd", "--overwrite")
	t.Cleanup(func() { f.kubectl(t, "label", "node", "n1", "n2", "n3", "disk-") })
	f.deploy(t, "labelled", manifest)
	f.onNodes(t, "labelled", "n1", "n2")

	f.kubectl(t, "label", "node", "n3", "disk=ssd")
	f.onNodes(t, "labelled", "n1", "n2", "n3")
	f.kubectl(t, "label", "node", "n1", "disk=hdd", "--overwrite")
	f.onNodes(t, "labelled", "n2", "n3")

	f.kubectl(t, "taint", "node", "n2", "maintenance=now:NoExecute")
	t.Cleanup(func() { _, _ = f.tryKubectl("", "taint", "node", "n2", "maintenance-") })
	f.onNodes(t, "labelled", "n3")
	f.kubectl(t, "taint", "node", "n2", "maintenance-")
	f.onNodes(t, "labelled", "n2", "n3")

	// NoSchedule leaves what runs and keeps new pods away.
	f.kubectl(t, "taint", "node", "n3", "full=yes:NoSchedule")
	t.Cleanup(func() { _, _ = f.tryKubectl("", "taint", "node", "n3", "full-") })
	pod := f.pods(t, "labelled")["n3"]
	f.onNodes(t, "labelled", "n2", "n3")
	f.kubectl(t, "delete", "pod", pod.Name, "--wait=true")
	f.onNodes(t, "labelled", "n2")
	f.kubectl(t, "taint", "node", "n3", "full-")
	f.onNodes(t, "labelled", "n2", "n3")
	if pids := pidsOf("sleep", "86404"); len(pids) != 2 {
		t.Errorf("want 2 processes, got %v", pids)
	}
}

func TestKubectlLogs(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "talk", daemonSet("talk", "sh", "-c", `echo "hello from $NODE"; for i in 1 2 3 4 5; do echo "line $i"; done; exec sleep 86405`))
	pod := f.pods(t, "talk")["n1"]
	if out := f.kubectl(t, "logs", pod.Name, "--tail=2"); out != "line 4\nline 5\n" {
		t.Errorf("logs --tail=2: %q", out)
	}
	if out := f.kubectl(t, "logs", pod.Name); strings.Count(out, "\n") != 6 {
		t.Errorf("logs: %q", out)
	}

	// A follower sees the run after a crash, too.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := f.client.CoreV1().Pods("default").GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	killed := false
	var got strings.Builder
	for buf := make([]byte, 4096); strings.Count(got.String(), "line 5\n") < 2; {
		n, err := stream.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("follow: %v; got %q", err, got.String())
		}
		if !killed && strings.Contains(got.String(), "line 5\n") {
			killed = true
			kill9(t, mainRun(t, f.groupOf(t, pod)).PID)
		}
	}
	if n := strings.Count(got.String(), "\n"); n != 12 {
		t.Errorf("the follower saw %d lines, want 6 of each run: %q", n, got.String())
	}

	f.untilPods(t, "talk", 5*time.Second, "a restart", func(pods map[string]*corev1.Pod) bool {
		p := pods[pod.Name]
		return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	if out := f.kubectl(t, "logs", pod.Name, "--previous", "--tail=1"); out != "line 5\n" {
		t.Errorf("logs --previous: %q", out)
	}
}
