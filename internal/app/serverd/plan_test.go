package serverd

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/controller"
)

// manifest is a DaemonSet that is updated zone by zone.
const manifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: unrelated}
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: exporter
  annotations: {rollout.legion.dev/order-by: topology.kubernetes.io/zone}
spec:
  selector: {matchLabels: {app: exporter}}
  template:
    metadata: {labels: {app: exporter}}
    spec:
      runtimeClassName: host
      containers: [{name: c, image: "example.org/exporter:1"}]
`

// runFleet runs a server with Legion's controllers, nodes in two zones and one
// that cannot run host pods, and what makes pods ready.
func runFleet(t *testing.T) kubernetes.Interface { return runFleetWith(t, controller.Config{}) }

func runFleetWith(t *testing.T, own controller.Config) kubernetes.Interface {
	t.Helper()
	return runFleetInside(t, own, func(apiserver.Inside) {})
}

// runFleetInside tells how to reach the API from inside, too.
func runFleetInside(t *testing.T, own controller.Config, told func(apiserver.Inside)) kubernetes.Interface {
	t.Helper()
	own.NodeGrace, own.Log = time.Hour, slog.New(slog.DiscardHandler)
	dir, err := os.MkdirTemp("", "legion-")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- apiserver.Run(ctx, apiserver.Config{
			Dir: dir, Listen: "127.0.0.1", Ready: func(string) { close(ready) }, Controllers: func(ctx context.Context, inside apiserver.Inside) error {
				told(inside)
				return runControllers(ctx, inside, own, false)
			},
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = os.RemoveAll(dir)
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("the server did not start")
	}
	t.Setenv("KUBECONFIG", apiserver.AdminKubeconfig(dir))
	config, err := clientcmd.BuildConfigFromFlags("", apiserver.AdminKubeconfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(config)
	for name, zone := range map[string]string{"n1": "b", "n2": "a", "n3": "a", "n4": "b"} {
		handler := "host"
		if name == "n4" {
			handler = "kata"
		}
		_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}},
			Status: corev1.NodeStatus{
				RuntimeHandlers: []corev1.NodeRuntimeHandler{{Name: handler}},
				Conditions:      []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Now()}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for ctx.Err() == nil {
			w, err := client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{})
			if err != nil {
				continue
			}
			for e := range w.ResultChan() {
				pod, ok := e.Object.(*corev1.Pod)
				switch {
				case !ok:
				case pod.DeletionTimestamp != nil:
					zero := int64(0)
					_ = client.CoreV1().Pods("default").Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
				case pod.Spec.NodeName == "":
					// As a scheduler does, where the pod does not name its node.
					node := pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
					_ = client.CoreV1().Pods("default").Bind(ctx, &corev1.Binding{
						ObjectMeta: metav1.ObjectMeta{Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node},
					}, metav1.CreateOptions{})
				case pod.Status.Phase == corev1.PodPending:
					patch := `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"` + time.Now().UTC().Format(time.RFC3339) + `"}]}}`
					_, _ = client.CoreV1().Pods("default").Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
				}
			}
		}
	}()
	return client
}

// try runs a command line of legion-server.
func try(t *testing.T, args string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := command(&out, &out)
	root.SetArgs(strings.Fields(args))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func expect(t *testing.T, got string, parts ...string) {
	t.Helper()
	at := 0
	for _, p := range parts {
		i := strings.Index(got[at:], p)
		if i < 0 {
			t.Errorf("%q is not there, or not in its place, in:\n%s", p, got)
			return
		}
		at += i + len(p)
	}
}

func must(t *testing.T, args string) string {
	t.Helper()
	out, err := try(t, args)
	if err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
	return out
}

func TestPlanAndRollout(t *testing.T) {
	client := runFleet(t)
	file := filepath.Join(t.TempDir(), "exporter.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(manifest)
	sets := client.AppsV1().DaemonSets("default")

	// A DaemonSet that is not there yet.
	expect(t, must(t, "plan -f "+file+" --dry-run"), "daemonset default/exporter", "now: it is not there; 3 of 4 nodes are eligible", "n1 ", "yes", "n4 ", "no: the node has no runtime handler host",
		"1. topology.kubernetes.io/zone=a: create a pod on n2", "on n3", "2. topology.kubernetes.io/zone=b: create a pod on n1")
	if list, err := sets.List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		t.Fatalf("the plan made something: %v %v", list, err)
	}
	want, err := fromFile(t.Context(), client, file, "default", nil)
	if err != nil {
		t.Fatal(err)
	}
	want[0].ObjectMeta = metav1.ObjectMeta{Name: "exporter", Annotations: map[string]string{"rollout.legion.dev/order-by": corev1.LabelTopologyZone}}
	if _, err := sets.Create(t.Context(), want[0], metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, must(t, "rollout status ds/exporter"), "UpdateComplete", "3 of 3 updated")
	expect(t, must(t, "plan ds/exporter"), "ready", "nothing is to be done", "3 of 3 updated")

	// A change of it, as text and for programs.
	write(strings.Replace(manifest, "exporter:1", "exporter:2", 1))
	expect(t, must(t, "plan -f "+file), "1. topology.kubernetes.io/zone=a: delete pod exporter-", "on n2: revision ",
		"2. topology.kubernetes.io/zone=a: delete", "on n3", "3. topology.kubernetes.io/zone=b: delete", "on n1", "then: ", "3 of 3 updated")
	var p plan
	if err := json.Unmarshal([]byte(must(t, "plan -o json -f "+file)), &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Nodes) != 4 || len(p.Steps) != 3 || p.Steps[2].Actions[0].Node != "n1" || p.MaxUnavailable != 1 {
		t.Errorf("%+v", p)
	}
	write(strings.Replace(manifest, "rollout.legion.dev/order-by: topology.kubernetes.io/zone", "rollout.legion.dev/bake: soon", 1))
	if _, err := try(t, "plan -f "+file); err == nil || !strings.Contains(err.Error(), "such as 5m") {
		t.Errorf("a wrong annotation: %v", err)
	}

	// Paused, changed, resumed.
	expect(t, must(t, "rollout pause ds/exporter"), "ds/exporter paused")
	change := `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"example.org/exporter:2"}]}}}}`
	if _, err := sets.Patch(t.Context(), "exporter", types.StrategicMergePatchType, []byte(change), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if out, err := try(t, "rollout status ds/exporter"); err == nil || !strings.Contains(err.Error(), "legion rollout resume ds/exporter") {
		t.Errorf("status of a paused update: %v\n%s", err, out)
	}
	expect(t, must(t, "rollout resume daemonset.apps/exporter -n default"), "resumed")
	expect(t, must(t, "rollout status ds/exporter"), "UpdateComplete", "3 of 3 updated")
	for _, pod := range listPods(t, client) {
		if pod.Spec.Containers[0].Image != "example.org/exporter:2" {
			t.Errorf("%s runs %s", pod.Name, pod.Spec.Containers[0].Image)
		}
	}
	if dir, rest := takeDir(strings.Fields("ds/x --dir d -n y --dir=e --to-revision 3")); dir != "e" || strings.Join(rest, " ") != "ds/x -n y --to-revision 3" {
		t.Errorf("%s %v", dir, rest)
	}
	for args, want := range map[string]string{
		"plan":                       "ds/NAME",
		"plan deploy/x":              "no DaemonSet",
		"plan ds/none":               "not found",
		"plan -o yaml ds/exporter":   "only json",
		"plan -f /no/such/file":      "no such file",
		"rollout status":             "takes one DaemonSet",
		"rollout pause ds/none":      "not found",
		"rollout status ds/none":     "not found",
		"rollout status pods/x":      "no DaemonSet",
		"plan ds/exporter -n others": "not found",
	} {
		if _, err := try(t, args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

func listPods(t *testing.T, client kubernetes.Interface) []corev1.Pod {
	t.Helper()
	list, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var live []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			live = append(live, p)
		}
	}
	return live
}

func TestWrapped(t *testing.T) {
	for _, c := range []struct {
		width int
		want  string
	}{
		{80, "Updating: 4 of 60 updated; 2 unavailable: node-7 ImagePull"},
		{40, "Updating: 4 of 60 updated; 2|  unavailable: node-7 ImagePull"},
		{20, "Updating: 4 of 60|  updated; 2|  unavailable:|  node-7 ImagePull"},
		{4, "Updating:|  4|  of|  60|  updated;|  2|  unavailable:|  node-7|  ImagePull"},
	} {
		if got := strings.Join(wrapped("Updating: 4 of 60 updated; 2 unavailable: node-7 ImagePull", c.width), "|"); got != c.want {
			t.Errorf("%d: %s, want %s", c.width, got, c.want)
		}
	}
	if got := wrapped("", 80); len(got) != 1 || got[0] != "" {
		t.Errorf("%q", got)
	}
}
