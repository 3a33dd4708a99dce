package sim_test

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	toolswatch "k8s.io/client-go/tools/watch"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/controller"
	"legion.dev/legion/test/sim"
)

// limit is how long a test waits for what must happen.
const limit = 90 * time.Second

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// serve runs a control plane that takes a node for lost after two seconds.
func serve(t *testing.T) *rest.Config {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- apiserver.Run(ctx, apiserver.Config{
			Dir: dir, Listen: "127.0.0.1", Ready: func(string) { close(ready) },
			Controllers: func(ctx context.Context, inside apiserver.Inside) error {
				return controller.Run(ctx, controller.Config{Client: inside.Client, Informers: inside.Informers, NodeGrace: 2 * time.Second, Log: slog.New(slog.DiscardHandler)})
			},
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", apiserver.AdminKubeconfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestFleet(t *testing.T) {
	config := serve(t)
	client := kubernetes.NewForConfigOrDie(config)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	fleet, err := sim.Start(ctx, sim.Config{
		REST: config, Nodes: 30, Failures: 0.2, Seed: 7, FinalStatus: true, Renew: 200 * time.Millisecond,
		Start: sim.Span{Max: 50 * time.Millisecond}, Stop: sim.Span{Max: 20 * time.Millisecond},
		Pullable: func(image string) bool { return image != "missing" },
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	match := map[string]string{"app": "d"}
	_, err = client.AppsV1().DaemonSets("default").Create(ctx, &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "d"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: match},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: match},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "any"}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, want func(sim.Stats) bool) {
		t.Helper()
		if err := fleet.Await(ctx, want); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	all := func(n int) func(sim.Stats) bool {
		return func(s sim.Stats) bool { return s.Nodes == n && s.Ready == n && s.Bound == n }
	}
	// A fifth of the pods fail: those are made again until one does not.
	await("all are ready", all(30))
	if err := fleet.Join("late"); err != nil {
		t.Fatal(err)
	}
	await("a node that joins is covered", all(31))

	lost := fleet.Name(3)
	fleet.Silence(lost)
	await("the pod of a node that went silent is not ready", func(s sim.Stats) bool { return s.Bound == 31 && s.Ready == 30 })
	fleet.Return(lost)
	await("all are ready when it is back", all(31))
	nodes := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", "", fields.OneTermEqualSelector("metadata.name", lost))
	_, err = toolswatch.UntilWithSync(ctx, nodes, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		for _, c := range e.Object.(*corev1.Node).Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == corev1.ConditionTrue, nil
			}
		}
		return false, nil
	})
	if err != nil {
		t.Fatalf("a node that came back is not ready: %v", err)
	}
	if err := fleet.Leave(ctx, fleet.Name(5)); err != nil {
		t.Fatal(err)
	}
	await("the pod of a node that left is gone", all(30))

	update := func(image string) {
		t.Helper()
		patch := `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"` + image + `"}]}}}}`
		_, err := client.AppsV1().DaemonSets("default").Patch(ctx, "d", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	update("missing")
	pods := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "pods", "default", fields.Everything())
	_, err = toolswatch.UntilWithSync(ctx, pods, &corev1.Pod{}, nil, func(e watch.Event) (bool, error) {
		status := e.Object.(*corev1.Pod).Status
		return status.Phase == corev1.PodPending && len(status.ContainerStatuses) == 1 &&
			status.ContainerStatuses[0].State.Waiting != nil && status.ContainerStatuses[0].State.Waiting.Reason == "ImagePullBackOff", nil
	})
	if err != nil {
		t.Fatalf("no pod waits for an image that nobody has: %v", err)
	}
	await("the update stops at that pod", func(s sim.Stats) bool { return s.Bound == 30 && s.Ready == 29 })
	update("any")
	await("all are ready with the first image", all(30))
	if err := client.AppsV1().DaemonSets("default").Delete(ctx, "d", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await("no pods are left", func(s sim.Stats) bool { return s.Bound+s.Leaving == 0 })
	cancel()
	fleet.Wait()
}
