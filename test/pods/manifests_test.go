package pods

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
)

// standing is an image that a manifest names: where its program lies, its
// ENTRYPOINT, and its USER.
type standing struct {
	name       string
	at         []string
	entrypoint []string
	user       string
}

// manifest is one of a project's, and what must be there before it is applied.
type manifest struct {
	file, namespace, daemonSet string
	images                     []standing
	// accounts, and the other objects, are what the project's other manifests
	// and its users make.
	accounts []string
	objects  string
	// ports are those that its pods listen on: all pods share the node's.
	ports []int
	// unserved are kinds in the file that the server does not have.
	unserved []string
}

var manifests = []manifest{
	{
		file: "aws-ebs-csi-node.yaml", namespace: "default", daemonSet: "ebs-csi-node", accounts: []string{"ebs-csi-node-sa"}, ports: []int{9808, 9809},
		images: []standing{
			{name: "public.ecr.aws/ebs-csi-driver/aws-ebs-csi-driver:v1.64.0", at: []string{"/bin/aws-ebs-csi-driver"}, entrypoint: []string{"/bin/aws-ebs-csi-driver"}},
			{name: "public.ecr.aws/csi-components/csi-node-driver-registrar:v2.17.0-eksbuild.5", at: []string{"/csi-node-driver-registrar"}, entrypoint: []string{"/csi-node-driver-registrar"}},
			{name: "public.ecr.aws/csi-components/livenessprobe:v2.19.0-eksbuild.5", at: []string{"/livenessprobe"}, entrypoint: []string{"/livenessprobe"}},
		},
	},
	{
		file: "cadvisor.yaml", namespace: "cadvisor", daemonSet: "cadvisor", accounts: []string{"cadvisor"}, ports: []int{8080},
		images: []standing{{name: "ghcr.io/google/cadvisor:0.54.0", at: []string{"/usr/bin/cadvisor"}, entrypoint: []string{"/usr/bin/cadvisor", "-logtostderr"}}},
	},
	{
		file: "flannel.yaml", namespace: "kube-flannel", daemonSet: "kube-flannel-ds", ports: []int{8081},
		images: []standing{
			{name: "ghcr.io/flannel-io/flannel-cni-plugin:v1.9.1-flannel3", at: []string{"/flannel", "/bin/cp"}},
			{name: "ghcr.io/flannel-io/flannel:v0.28.9", at: []string{"/opt/bin/flanneld", "/opt/bin/install-conf"}},
		},
	},
	{
		file: "fluentd-elasticsearch.yaml", namespace: "kube-system", daemonSet: "fluentd",
		images: []standing{{name: "fluent/fluentd-kubernetes-daemonset:v1-debian-elasticsearch", at: []string{"/usr/bin/fluentd"}, entrypoint: []string{"/usr/bin/fluentd"}}},
	},
	{
		file: "kured.yaml", namespace: "kube-system", daemonSet: "kured", ports: []int{8080},
		images: []standing{{name: "ghcr.io/kubereboot/kured:1.23.0", at: []string{"/usr/bin/kured"}, entrypoint: []string{"/usr/bin/kured"}}},
	},
	{
		file: "metallb.yaml", namespace: "metallb-system", daemonSet: "speaker", ports: []int{9120, 17472},
		unserved: []string{"CustomResourceDefinition", "Deployment", "ValidatingWebhookConfiguration"},
		objects:  "kind: Secret\nmetadata: {name: memberlist}\nstringData: {secretkey: x}\n",
		images:   []standing{{name: "quay.io/metallb/speaker:main", at: []string{"/speaker"}, entrypoint: []string{"/speaker"}}},
	},
	{
		file: "nfd-worker.yaml", namespace: "default", daemonSet: "nfd-worker", accounts: []string{"nfd-worker"}, ports: []int{8080},
		images: []standing{{name: pulled, at: []string{"/usr/bin/nfd-worker"}}},
	},
	{
		file: "node-exporter.yaml", namespace: "monitoring", daemonSet: "node-exporter", accounts: []string{"node-exporter"}, ports: []int{9100, 9101},
		images: []standing{
			{name: "quay.io/prometheus/node-exporter:v1.12.1", at: []string{"/bin/node_exporter"}, entrypoint: []string{"/bin/node_exporter"}, user: "nobody"},
			{name: "quay.io/brancz/kube-rbac-proxy:v0.22.1", at: []string{"/usr/local/bin/kube-rbac-proxy"}, entrypoint: []string{"/usr/local/bin/kube-rbac-proxy"}, user: "65532:65532"},
		},
	},
	{
		file: "node-problem-detector.yaml", namespace: "kube-system", daemonSet: "node-problem-detector", accounts: []string{"node-problem-detector"},
		objects: "kind: ConfigMap\nmetadata: {name: node-problem-detector-config}\ndata: {kernel-monitor.json: x, readonly-monitor.json: x, docker-monitor.json: x}\n",
		images:  []standing{{name: "registry.k8s.io/node-problem-detector/node-problem-detector:v0.8.19", at: []string{"/node-problem-detector"}, entrypoint: []string{"/node-problem-detector"}}},
	},
	{
		file: "nvidia-device-plugin.yaml", namespace: "kube-system", daemonSet: "nvidia-device-plugin-daemonset",
		images: []standing{{name: "nvcr.io/nvidia/k8s-device-plugin:v0.20.0", at: []string{"/usr/bin/nvidia-device-plugin"}, entrypoint: []string{"nvidia-device-plugin"}}},
	},
	{
		file: "otel-collector.yaml", namespace: "default", daemonSet: "example-opentelemetry-collector-agent", accounts: []string{"example-opentelemetry-collector"}, ports: []int{13133},
		objects: "kind: ConfigMap\nmetadata: {name: example-opentelemetry-collector-agent}\ndata: {relay: x}\n",
		images:  []standing{{name: "ghcr.io/open-telemetry/opentelemetry-collector-releases/opentelemetry-collector-k8s:0.158.0", at: []string{"/otelcol-k8s"}, entrypoint: []string{"/otelcol-k8s"}, user: "10001:10001"}},
	},
	{
		file: "secrets-store-csi.yaml", namespace: "kube-system", daemonSet: "csi-secrets-store", accounts: []string{"secrets-store-csi-driver"}, ports: []int{8095, 9808},
		images: []standing{
			{name: "registry.k8s.io/sig-storage/csi-node-driver-registrar:v2.16.0", at: []string{"/csi-node-driver-registrar"}, entrypoint: []string{"/csi-node-driver-registrar"}},
			{name: "registry.k8s.io/csi-secrets-store/driver:v1.6.0", at: []string{"/secrets-store-csi"}, entrypoint: []string{"/secrets-store-csi"}},
			{name: "registry.k8s.io/sig-storage/livenessprobe:v2.18.0", at: []string{"/livenessprobe"}, entrypoint: []string{"/livenessprobe"}},
		},
	},
	{
		file: "vector-agent.yaml", namespace: "default", daemonSet: "vector", accounts: []string{"vector"}, ports: []int{8686},
		objects: "kind: ConfigMap\nmetadata: {name: vector}\ndata: {vector.yaml: x}\n",
		images:  []standing{{name: "docker.io/timberio/vector:0.57.0-distroless-libc", at: []string{"/usr/bin/vector"}, entrypoint: []string{"/usr/bin/vector"}}},
	},
}

// TestManifests applies what projects publish, unchanged, and sees that each
// pod runs, ready, without a restart. The manifests lie beside the repository,
// in ../shared/manifests or LEGION_MANIFESTS.
func TestManifests(t *testing.T) {
	need(t)
	dir := os.Getenv("LEGION_MANIFESTS")
	if dir == "" {
		dir = "../../../shared/manifests"
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Skipf("there are no manifests in %s (LEGION_MANIFESTS)", dir)
	}
	t.Parallel()
	shared.prepareNode(t)
	for _, file := range files {
		if !slices.ContainsFunc(manifests, func(m manifest) bool { return m.file == filepath.Base(file) }) {
			t.Errorf("%s is none that the test knows", file)
		}
	}
	for _, m := range manifests {
		t.Run(strings.TrimSuffix(m.file, ".yaml"), func(t *testing.T) {
			t.Parallel()
			m.run(t, shared, filepath.Join(dir, m.file))
		})
	}
}

// prepareNode makes what a node of Kubernetes has.
func (f *fleet) prepareNode(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"/var/lib/kubelet/plugins_registry", "/var/lib/kubelet/device-plugins", "/var/log/pods"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat("/dev/disk"); err != nil {
		// /dev is the machine's: what a pod makes of it goes with the test.
		t.Cleanup(func() { _ = os.Remove("/dev/disk") })
	}
}

// inUse keeps pods apart that listen on the same ports.
var inUse = struct {
	sync.Mutex
	ports map[int]bool
	free  *sync.Cond
}{ports: map[int]bool{}}

func takePorts(ports []int) (release func()) {
	inUse.Lock()
	defer inUse.Unlock()
	if inUse.free == nil {
		inUse.free = sync.NewCond(&inUse)
	}
	for slices.ContainsFunc(ports, func(p int) bool { return inUse.ports[p] }) {
		inUse.free.Wait()
	}
	for _, p := range ports {
		inUse.ports[p] = true
	}
	return func() {
		inUse.Lock()
		defer inUse.Unlock()
		for _, p := range ports {
			delete(inUse.ports, p)
		}
		inUse.free.Broadcast()
	}
}

func (m manifest) run(t *testing.T, f *fleet, file string) {
	defer takePorts(m.ports)()
	m.prepare(t, f)
	out, err := f.program("", "legion", "kubectl", "apply", "-n", m.namespace, "-f", file)
	if problems := m.refused(out); (err != nil) != (len(m.unserved) > 0) || len(problems) > 0 {
		t.Fatalf("apply: %v: %q\n%s", err, problems, out)
	}
	ds, err := f.api.AppsV1().DaemonSets(m.namespace).Get(t.Context(), m.daemonSet, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	m.awaitReady(t, f, ds)
	if out, err := f.program("", "legion", "kubectl", "delete", "ds", "-n", m.namespace, m.daemonSet, "--cascade=foreground", "--wait"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	m.awaitGone(t, f, ds)
}

// awaitGone waits until no pod is left, whose ports others may have then.
func (m manifest) awaitGone(t *testing.T, f *fleet, ds *appsv1.DaemonSet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	options := metav1.ListOptions{LabelSelector: labels.FormatLabels(ds.Spec.Selector.MatchLabels)}
	pods, err := f.api.CoreV1().Pods(m.namespace).List(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	options.ResourceVersion = pods.ResourceVersion
	w, err := f.api.CoreV1().Pods(m.namespace).Watch(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for left := len(pods.Items); left > 0; {
		ev, ok := <-w.ResultChan()
		if !ok {
			t.Fatalf("%d pods are left", left)
		}
		if ev.Type == watch.Deleted {
			left--
		}
	}
}

// prepare makes what the manifest takes for granted.
func (m manifest) prepare(t *testing.T, f *fleet) {
	t.Helper()
	for _, s := range m.images {
		config := imagev1.Config{Entrypoint: s.entrypoint, User: s.user}
		if s.name == pulled {
			if err := f.registry.push(s.name, s.at, f.daemon, config); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := f.image(s.name, s.at, f.daemon, config); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", m.namespace)
	for _, a := range m.accounts {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: %s}\n", a, m.namespace)
	}
	if m.objects != "" {
		b.WriteString("---\napiVersion: v1\n" + strings.Replace(m.objects, "metadata: {", "metadata: {namespace: "+m.namespace+", ", 1))
	}
	if out, err := f.program(b.String(), "legion", "kubectl", "apply", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// refused are the complaints of kubectl that are not of kinds that the server
// does not have.
func (m manifest) refused(out string) []string {
	var problems []string
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		known := strings.HasSuffix(line, "created") || strings.HasSuffix(line, "configured") || strings.HasSuffix(line, "unchanged") ||
			strings.HasPrefix(line, "Warning: ") || strings.HasPrefix(line, "resource mapping not found") && slices.ContainsFunc(m.unserved, func(kind string) bool {
			return strings.Contains(line, fmt.Sprintf("no matches for kind %q", kind))
		}) || line == "ensure CRDs are installed first" || line == ""
		if !known {
			problems = append(problems, line)
		}
	}
	return problems
}

// awaitReady waits until the DaemonSet's pod is ready; nothing may have been
// started twice.
func (m manifest) awaitReady(t *testing.T, f *fleet, ds *appsv1.DaemonSet) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, err := f.api.CoreV1().Pods(m.namespace).Watch(ctx, metav1.ListOptions{
		LabelSelector: labels.FormatLabels(ds.Spec.Selector.MatchLabels), FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var last *corev1.Pod
	for ev := range w.ResultChan() {
		p, ok := ev.Object.(*corev1.Pod)
		if !ok {
			t.Fatalf("the watch brought %+v", ev.Object)
		}
		last = p
		if missing, _ := match(lines(p), []string{"Ready True"}); len(missing) > 0 {
			continue
		}
		m.runs(t, f, p)
		return
	}
	if last == nil {
		t.Fatal("there is no pod")
	}
	t.Fatalf("not ready: %s", m.report(f, last))
}

// runs waits until each program has found all that it needs. Without a probe a
// container is ready before.
func (m manifest) runs(t *testing.T, f *fleet, p *corev1.Pod) {
	t.Helper()
	s := script{fleet: f, namespace: m.namespace, changed: make(chan struct{})}
	for _, c := range p.Spec.Containers {
		said := func(lines []string) bool {
			return slices.ContainsFunc(lines, func(line string) bool { return strings.HasSuffix(line, " runs") })
		}
		if text, err := s.log(t.Context(), p.Name, c.Name, false, said); err != nil || !said(text) {
			t.Errorf("%s says %q, %v", c.Name, text, err)
		}
	}
	now, err := f.api.CoreV1().Pods(m.namespace).Get(t.Context(), p.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range slices.Concat(now.Status.InitContainerStatuses, now.Status.ContainerStatuses) {
		if c.RestartCount > 0 {
			t.Errorf("%s was started again: %s", c.Name, m.report(f, now))
		}
	}
}

func (m manifest) report(f *fleet, p *corev1.Pod) string {
	s := script{fleet: f, namespace: m.namespace, seen: map[string][]*corev1.Pod{p.Name: {p}}}
	return s.report(p.Name)
}
