package serverd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/kubernetes/pkg/controller/daemon"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/controller"
	"legion.dev/legion/internal/daemonset"
)

// asAccount writes a kubeconfig with the rights of the controller's service
// account, and no others.
func asAccount(t *testing.T) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate = "system:serviceaccount:kube-system:" + controller.RoleName
		user.ImpersonateGroups = []string{"system:serviceaccounts", "system:authenticated"}
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// allow applies what --print-rbac prints.
func allow(t *testing.T, client kubernetes.Interface, manifests string) {
	t.Helper()
	for doc := range strings.SplitSeq(strings.TrimPrefix(manifests, "---\n"), "---\n") {
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		options := metav1.CreateOptions{}
		switch o := obj.(type) {
		case *corev1.ServiceAccount:
			_, err = client.CoreV1().ServiceAccounts(o.Namespace).Create(t.Context(), o, options)
		case *rbacv1.ClusterRole:
			_, err = client.RbacV1().ClusterRoles().Create(t.Context(), o, options)
		case *rbacv1.ClusterRoleBinding:
			_, err = client.RbacV1().ClusterRoleBindings().Create(t.Context(), o, options)
		case *rbacv1.Role:
			_, err = client.RbacV1().Roles(o.Namespace).Create(t.Context(), o, options)
		case *rbacv1.RoleBinding:
			_, err = client.RbacV1().RoleBindings(o.Namespace).Create(t.Context(), o, options)
		default:
			t.Fatalf("%T", obj)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// process is a command line of legion-server that goes on until it is stopped.
type process struct {
	t     *testing.T
	stop  context.CancelFunc
	ended chan error

	mu    sync.Mutex
	text  bytes.Buffer
	wrote chan struct{}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.wrote <- struct{}{}:
	default:
	}
	return p.text.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

func launch(t *testing.T, args string) *process {
	t.Helper()
	p := &process{t: t, ended: make(chan error, 1), wrote: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	root := command(p, p)
	root.SetArgs(strings.Fields(args))
	go func() { p.ended <- root.ExecuteContext(ctx) }()
	t.Cleanup(cancel)
	return p
}

// says waits until the process has written something that matches.
func (p *process) says(pattern string) []string {
	p.t.Helper()
	deadline := time.After(time.Minute)
	for re := regexp.MustCompile(pattern); ; {
		if m := re.FindStringSubmatch(p.output()); m != nil {
			return m
		}
		select {
		case <-p.wrote:
		case err := <-p.ended:
			p.t.Fatalf("the process ended with %v and has not said %q:\n%s", err, pattern, p.output())
		case <-deadline:
			p.t.Fatalf("the process has not said %q:\n%s", pattern, p.output())
		}
	}
}

// ends stops the process and waits for its end.
func (p *process) ends() {
	p.t.Helper()
	p.stop()
	select {
	case err := <-p.ended:
		if err != nil {
			p.t.Errorf("the process ended with %v:\n%s", err, p.output())
		}
	case <-time.After(time.Minute):
		p.t.Fatalf("the process does not end:\n%s", p.output())
	}
}

// make creates the DaemonSet of the manifest.
func makeSet(t *testing.T, client kubernetes.Interface, edit func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	t.Helper()
	sets, err := fromFile(t.Context(), client, "-", "default", strings.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	ds := sets[0]
	ds.ObjectMeta = metav1.ObjectMeta{Name: ds.Name, Namespace: ds.Namespace, Annotations: map[string]string{daemonset.OrderByKey: corev1.LabelTopologyZone}}
	edit(ds)
	if ds, err = client.AppsV1().DaemonSets("default").Create(t.Context(), ds, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return ds
}

// untilSet waits for a state of the DaemonSet, from a watch.
func untilSet(t *testing.T, client kubernetes.Interface, what string, ok func(*appsv1.DaemonSet) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last *appsv1.DaemonSet
	for ctx.Err() == nil {
		w, err := client.AppsV1().DaemonSets("default").Watch(ctx, metav1.ListOptions{})
		if err != nil {
			break
		}
		for e := range w.ResultChan() {
			if ds, is := e.Object.(*appsv1.DaemonSet); is {
				if last = ds; ok(ds) {
					w.Stop()
					return
				}
			}
		}
	}
	t.Fatalf("%s did not come about: %+v", what, last)
}

func rolledTo(image string, n int32) func(*appsv1.DaemonSet) bool {
	return func(ds *appsv1.DaemonSet) bool {
		s := ds.Status
		return ds.Spec.Template.Spec.Containers[0].Image == image && s.ObservedGeneration == ds.Generation &&
			s.UpdatedNumberScheduled == n && s.NumberAvailable == n && s.DesiredNumberScheduled == n
	}
}

func setImage(t *testing.T, client kubernetes.Interface, image string) {
	t.Helper()
	patch := `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"` + image + `"}]}}}}`
	if _, err := client.AppsV1().DaemonSets("default").Patch(t.Context(), "exporter", "application/strategic-merge-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Two controllers outside of the server, with the rights that are printed and
// no others: one works, the other takes over.
func TestControllerOutside(t *testing.T) {
	client := runFleetWith(t, controller.Config{LeaveDaemonSets: true})
	args := "controller --kubeconfig " + asAccount(t) + " --lease-duration 5s --health 127.0.0.1:0"
	out, err := try(t, args)
	if !errors.Is(err, exitRights) {
		t.Fatalf("without rights: %v", err)
	}
	expect(t, out, "list, watch nodes\n", "get, list, watch, create, delete, patch pods\n",
		"get, watch, create, update leases.coordination.k8s.io in namespace kube-system\n", "--print-rbac | kubectl apply -f -")
	allow(t, client, must(t, "controller --print-rbac"))
	args += " --look-for-other 100ms"

	first := launch(t, args+" --identity first")
	health := first.says(`url=(http://\S+/healthz)`)[1]
	first.says("msg=working")
	second := launch(t, args+" --identity second")
	second.says("standing by.*leader=first")
	expect(t, get(t, health), "ok: leading")
	expect(t, get(t, second.says(`url=(http://\S+/healthz)`)[1]), "ok: standing by: first leads")

	makeSet(t, client, func(*appsv1.DaemonSet) {})
	untilSet(t, client, "the first rollout", rolledTo("example.org/exporter:1", 3))
	first.ends()
	second.says("msg=working")
	setImage(t, client, "example.org/exporter:2")
	untilSet(t, client, "the second rollout", rolledTo("example.org/exporter:2", 3))
	second.ends()
	lease, err := client.CoordinationV1().Leases("kube-system").Get(t.Context(), controller.FieldManager, metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity != "" {
		t.Errorf("the Lease is not given up: %v %v", lease.Spec, err)
	}
	probes, err := client.AppsV1().DaemonSets("").List(t.Context(), metav1.ListOptions{LabelSelector: "legion.dev/probe"})
	if err != nil || len(probes.Items) != 0 {
		t.Errorf("left over: %v %v", probes, err)
	}
}

// The server's own controller holds the Lease of all that drive DaemonSets: who
// comes to its side is refused, or waits. Without it others may begin at once.
func TestControllerBesideTheServers(t *testing.T) {
	client := runFleet(t)
	makeSet(t, client, func(*appsv1.DaemonSet) {})
	untilSet(t, client, "the first rollout", rolledTo("example.org/exporter:1", 3))
	out, err := try(t, "controller --look-for-other 1m") // it ends once the other one is seen
	if !errors.Is(err, exitOther) {
		t.Errorf("beside the server's own controller: %v", err)
	}
	expect(t, out, "has a DaemonSet controller that is active", "legion-server --daemonset-controller=false")
	out, err = try(t, "controller --rollouts-only")
	if !errors.Is(err, exitOther) {
		t.Errorf("updates only, beside the server's own controller: %v", err)
	}
	expect(t, out, "legion-server holds the Lease kube-system/legion-controller", "--rollouts-only is for")
	// Told not to look, they wait.
	for i, mode := range []string{"", " --rollouts-only"} {
		p := launch(t, "controller --look-for-other 0"+mode)
		p.says("standing by.*leader=legion-server")
		image := fmt.Sprintf("example.org/exporter:%d", i+2)
		setImage(t, client, image)
		untilSet(t, client, "an update by the server", rolledTo(image, 3))
		p.ends()
		if strings.Contains(p.output(), "msg=working") {
			t.Errorf("it works beside the server's:\n%s", p.output())
		}
	}
}

// A server whose own controller is turned on waits for one outside, which goes
// on until it ends.
func TestServersControllerWaits(t *testing.T) {
	insides := make(chan apiserver.Inside, 1)
	client := runFleetInside(t, controller.Config{LeaveDaemonSets: true}, func(i apiserver.Inside) { insides <- i })
	inside := <-insides
	outside := launch(t, "controller --look-for-other 100ms --identity outside")
	outside.says("msg=working")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := &process{t: t, wrote: make(chan struct{}, 1), ended: make(chan error, 1)}
	go func() {
		log.ended <- runControllers(ctx, inside, controller.Config{NodeGrace: time.Hour, Log: slog.New(slog.NewTextHandler(log, nil))}, false)
	}()
	log.says("standing by.*leader=outside")
	makeSet(t, client, func(*appsv1.DaemonSet) {})
	untilSet(t, client, "the first rollout", rolledTo("example.org/exporter:1", 3))
	if strings.Contains(log.output(), "leading") {
		t.Errorf("the server's works beside it:\n%s", log.output())
	}
	outside.ends()
	log.says("leading.*identity=legion-server")
	setImage(t, client, "example.org/exporter:2")
	untilSet(t, client, "the second rollout", rolledTo("example.org/exporter:2", 3))
}

func get(t *testing.T, url string) string {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("%s: %s %v", url, r.Status, err)
	}
	return string(b)
}

func TestControllerRefusals(t *testing.T) {
	runFleet(t)
	gone := filepath.Join(t.TempDir(), "kubeconfig")
	config := "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]}"
	if err := os.WriteFile(gone, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"controller --kubeconfig " + gone:       "cannot reach the cluster at https://127.0.0.1:1",
		"controller --kubeconfig /no/such/file": "no such file",
		"controller --lease-duration 1s":        "the least is 5s",
		"controller --health nowhere":           "cannot serve /healthz",
		"controller --context none":             "none",
		"controller x":                          "unknown command",
	} {
		if strings.Contains(args, "health") {
			args += " --look-for-other 0"
		}
		if _, err := try(t, args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// runStock runs upstream's DaemonSet controller, as kube-controller-manager
// does on a cluster where it cannot be turned off.
func runStock(t *testing.T) {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	client := kubernetes.NewForConfigOrDie(rest.AddUserAgent(config, "daemon-set-controller"))
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(client, 0)
	stock, err := daemon.NewDaemonSetsController(ctx, factory.Apps().V1().DaemonSets(), factory.Apps().V1().ControllerRevisions(),
		factory.Core().V1().Pods(), factory.Core().V1().Nodes(), client, flowcontrol.NewBackOff(time.Second, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	var wg sync.WaitGroup
	wg.Go(func() { stock.Run(ctx, 2) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		factory.Shutdown()
	})
}

// Beside upstream's own controller Legion carries out updates only, in order
// and one at a time.
func TestRolloutsOnly(t *testing.T) {
	client := runFleetWith(t, controller.Config{LeaveDaemonSets: true})
	runStock(t)
	allow(t, client, must(t, "controller --rollouts-only --print-rbac"))
	kubeconfig := asAccount(t)
	// What is not allowed with these rights is not done.
	account, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kubernetes.NewForConfigOrDie(account).CoreV1().Pods("default").Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "c"}}},
	}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Fatalf("a pod can be made: %v", err)
	}
	if _, err := try(t, "controller --look-for-other 30s"); !errors.Is(err, exitOther) {
		t.Errorf("beside upstream's controller: %v", err)
	}
	p := launch(t, "controller --rollouts-only --kubeconfig "+kubeconfig)
	p.says("msg=working")
	onDelete := func(ds *appsv1.DaemonSet) {
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
		// Upstream's controller knows nothing of runtime handlers.
		ds.Spec.Template.Spec.NodeSelector = map[string]string{"runs": "host"}
	}
	for _, node := range []string{"n1", "n2", "n3"} {
		if _, err := client.CoreV1().Nodes().Patch(t.Context(), node, "application/merge-patch+json", []byte(`{"metadata":{"labels":{"runs":"host"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	makeSet(t, client, onDelete)
	untilSet(t, client, "upstream's pods", rolledTo("example.org/exporter:1", 3))
	file := filepath.Join(t.TempDir(), "exporter.yaml")
	next := strings.NewReplacer("exporter:1", "exporter:2", "  template:", "  updateStrategy: {type: OnDelete}\n  template:").Replace(manifest)
	if err := os.WriteFile(file, []byte(next), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, must(t, "plan -f "+file), "rollout: one value of", "=a: delete pod exporter-", "on n2: revision ", "on n3", "=b: delete", "on n1", "3 of 3 updated")
	order := watchDeletions(t, client)
	setImage(t, client, "example.org/exporter:2")
	untilSet(t, client, "the update", func(ds *appsv1.DaemonSet) bool {
		return rolledTo("example.org/exporter:2", 3)(ds) && reasonOf(ds, daemonset.Progressing) == daemonset.UpdateComplete
	})
	if got, want := strings.Join(order(), " "), "n2 n3 n1"; got != want {
		t.Errorf("the order was %s, not %s", got, want)
	}
	// A wrong value halts it, and is told; without annotations it is not
	// Legion's, and nothing is said any more.
	annotate := func(patch string) {
		t.Helper()
		if _, err := client.AppsV1().DaemonSets("default").Patch(t.Context(), "exporter", "application/merge-patch+json", []byte(`{"metadata":{"annotations":`+patch+`}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	annotate(`{"rollout.legion.dev/paused":"true"}`)
	untilSet(t, client, "a pause", func(ds *appsv1.DaemonSet) bool { return reasonOf(ds, daemonset.Progressing) == daemonset.Paused })
	setImage(t, client, "example.org/exporter:3")
	untilSet(t, client, "the pause of a new revision", func(ds *appsv1.DaemonSet) bool {
		return ds.Status.ObservedGeneration == ds.Generation && ds.Status.UpdatedNumberScheduled == 0 && reasonOf(ds, daemonset.Progressing) == daemonset.Paused
	})
	annotate(`{"rollout.legion.dev/paused":null,"rollout.legion.dev/order-by":null}`)
	untilSet(t, client, "no conditions", func(ds *appsv1.DaemonSet) bool { return len(ds.Status.Conditions) == 0 })
	for _, pod := range listPods(t, client) {
		if pod.Spec.Containers[0].Image != "example.org/exporter:2" {
			t.Errorf("%s runs %s", pod.Name, pod.Spec.Containers[0].Image)
		}
	}
	p.ends()
}

func reasonOf(ds *appsv1.DaemonSet, kind appsv1.DaemonSetConditionType) string {
	for _, c := range ds.Status.Conditions {
		if c.Type == kind {
			return c.Reason
		}
	}
	return ""
}

// watchDeletions notes the nodes whose pods go, in order.
func watchDeletions(t *testing.T, client kubernetes.Interface) func() []string {
	t.Helper()
	list, err := client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.CoreV1().Pods("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	var nodes []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			if pod, ok := e.Object.(*corev1.Pod); ok && pod.DeletionTimestamp != nil && e.Type == "MODIFIED" {
				if n := len(nodes); n == 0 || nodes[n-1] != pod.Spec.NodeName {
					nodes = append(nodes, pod.Spec.NodeName)
				}
			}
		}
	}()
	return func() []string {
		w.Stop()
		<-done
		return nodes
	}
}
