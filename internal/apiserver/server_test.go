package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/tunnel"
)

// limit is how long a test waits for what must happen.
const limit = 60 * time.Second

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

// fleet is a running server and its administrator.
type fleet struct {
	dir   string
	url   string
	admin *kubernetes.Clientset
	// config is the administrator's; its warnings are in warned.
	config *rest.Config
	warned *warnings
	stop   func()
}

type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.texts, "\n")
}

// start runs a real server in dir and waits until it is ready.
func start(t *testing.T, dir string) *fleet {
	t.Helper()
	return startWith(t, Config{Dir: dir, Listen: "127.0.0.1"})
}

func startWith(t *testing.T, config Config) *fleet {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	began := time.Now()
	config.Ready = func(url string) { ready <- url }
	go func() {
		ended <- Run(ctx, config)
	}()
	f := &fleet{dir: config.Dir, warned: &warnings{}}
	f.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server ended with: %v", err)
			}
		case <-time.After(limit):
			t.Error("the server did not stop")
		}
	})
	t.Cleanup(f.stop)
	select {
	case f.url = <-ready:
		t.Logf("ready after %s", time.Since(began).Round(time.Millisecond))
	case err := <-ended:
		ended <- nil
		t.Fatalf("the server ended: %v", err)
	case <-time.After(limit):
		t.Fatal("the server is not ready")
	}
	var err error
	if f.config, err = clientcmd.BuildConfigFromFlags("", AdminKubeconfig(config.Dir)); err != nil {
		t.Fatal(err)
	}
	f.config.WarningHandler = f.warned
	f.config.QPS = -1
	f.admin = kubernetes.NewForConfigOrDie(f.config)
	return f
}

// awaitAccount waits for the service account without which a namespace takes no
// pods.
func (f *fleet) awaitAccount(t *testing.T, namespace string) {
	t.Helper()
	options := metav1.ListOptions{FieldSelector: "metadata.name=default"}
	watcher, err := f.admin.CoreV1().ServiceAccounts(namespace).Watch(t.Context(), options)
	await(t, watcher, err, "service account default in "+namespace, watch.Added)
}

// await waits for an event of this type.
func await(t *testing.T, watcher watch.Interface, err error, what string, wanted watch.EventType) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	deadline := time.After(limit)
	for {
		select {
		case event, ok := <-watcher.ResultChan():
			if !ok {
				t.Fatalf("the watch of %s ended", what)
			}
			if event.Type == wanted {
				return
			}
		case <-deadline:
			t.Fatalf("%s: not %s within %s", what, wanted, limit)
		}
	}
}

// join gets a node's client through a fresh token.
func (f *fleet) join(t *testing.T, node string) (*kubernetes.Clientset, *rest.Config) {
	t.Helper()
	made, err := CreateToken(t.Context(), f.admin, f.config.CAData, NewToken{Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	got, err := pki.Join(t.Context(), f.url, made.String(), node)
	if err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: f.url, TLSClientConfig: rest.TLSClientConfig{CertData: got.Certificate, KeyData: got.Key, CAData: got.CA}}
	return kubernetes.NewForConfigOrDie(config), config
}

func pod(name, node, secret string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{Name: "main", Image: "none", Command: []string{"true"}}},
		},
	}
	if secret != "" {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}
	}
	return p
}

// must is for what is only preparation.
func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestServer(t *testing.T) {
	dir := t.TempDir()
	f := start(t, dir)
	f.awaitAccount(t, "default")
	for _, test := range []struct {
		name string
		run  func(*testing.T, *fleet)
	}{
		{"Discovery", testDiscovery},
		{"StrictFields", testStrictFields},
		{"NodesAreRestricted", testNodesAreRestricted},
		{"AccountTokens", testAccountTokens},
		{"NamespaceDeletion", testNamespaceDeletion},
		{"OwnersAreFollowed", testOwnersAreFollowed},
		{"ServicesWarn", testServicesWarn},
		{"PrivilegedPods", testPrivilegedPods},
		{"JoinRefusals", testJoinRefusals},
		{"JoinOnce", testJoinOnce},
		{"Renewal", testRenewal},
		{"RemovedNodes", testRemovedNodes},
		{"LogsThroughTheTunnel", testLogs},
		{"Anonymous", testAnonymous},
		{"SecondServer", testSecondServer},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, f) })
	}
	kept := must[*corev1.ConfigMap](t)(f.admin.CoreV1().ConfigMaps("default").Create(t.Context(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"k": "v"}}, metav1.CreateOptions{}))
	began := time.Now()
	f.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	again := start(t, dir)
	found := must[*corev1.ConfigMap](t)(again.admin.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}))
	if found.UID != kept.UID || found.Data["k"] != "v" {
		t.Errorf("after a restart: %v", found)
	}
}

func testDiscovery(t *testing.T, f *fleet) {
	lists := must[[]*metav1.APIResourceList](t)(f.admin.Discovery().ServerPreferredResources())
	served := map[string]bool{}
	for _, list := range lists {
		for _, resource := range list.APIResources {
			served[list.GroupVersion+"/"+resource.Name] = true
		}
	}
	for _, want := range []string{"v1/pods", "v1/nodes", "v1/services", "apps/v1/daemonsets", "apps/v1/controllerrevisions", "coordination.k8s.io/v1/leases", "node.k8s.io/v1/runtimeclasses", "scheduling.k8s.io/v1/priorityclasses"} {
		if !served[want] {
			t.Errorf("%s is not served", want)
		}
	}
	for _, absent := range []string{"apps/v1/deployments", "v1/persistentvolumes", "v1/replicationcontrollers"} {
		if served[absent] {
			t.Errorf("%s is served", absent)
		}
	}
	eventually(t, "the rules of the role view", func() error {
		role, err := f.admin.RbacV1().ClusterRoles().Get(t.Context(), "view", metav1.GetOptions{})
		if err == nil && len(role.Rules) == 0 {
			err = errors.New("none are aggregated")
		}
		return err
	})
	if _, err := f.admin.NodeV1().RuntimeClasses().Get(t.Context(), HostRuntimeClass, metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	for _, class := range []string{"system-node-critical", "system-cluster-critical"} {
		if _, err := f.admin.SchedulingV1().PriorityClasses().Get(t.Context(), class, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
	document := must[[]byte](t)(f.admin.RESTClient().Get().AbsPath("/openapi/v3/apis/apps/v1").SetHeader("Accept", "application/json").DoRaw(t.Context()))
	if !strings.Contains(string(document), "io.k8s.api.apps.v1.DaemonSetUpdateStrategy") || strings.Contains(string(document), "io.k8s.api.apps.v1.Deployment\"") {
		t.Error("OpenAPI does not describe daemonsets, or describes deployments")
	}
}

func testStrictFields(t *testing.T, f *fleet) {
	body := `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"strict"},"spec":{"selector":{"matchLabels":{"a":"b"}},
		"template":{"metadata":{"labels":{"a":"b"}},"spec":{"hostNetwrk":true,"containers":[{"name":"c","image":"i"}]}}}}`
	post := func(content string) error {
		return f.admin.AppsV1().RESTClient().Post().AbsPath("/apis/apps/v1/namespaces/default/daemonsets").
			Param("fieldValidation", "Strict").SetHeader("Content-Type", "application/json").Body([]byte(content)).Do(t.Context()).Error()
	}
	if err := post(body); err == nil || !strings.Contains(err.Error(), `unknown field "spec.template.spec.hostNetwrk"`) {
		t.Errorf("a misspelt field: %v", err)
	}
	if err := post(strings.Replace(body, `"hostNetwrk":true,`, "", 1)); err != nil {
		t.Error(err)
	}
}

func testNodesAreRestricted(t *testing.T, f *fleet) {
	node, _ := f.join(t, "n1")
	core, admin := node.CoreV1(), f.admin.CoreV1()
	must[*corev1.Node](t)(core.Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}))
	must[*corev1.Node](t)(admin.Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, metav1.CreateOptions{}))
	for _, name := range []string{"mine", "theirs"} {
		must[*corev1.Secret](t)(admin.Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	}
	must[*corev1.Pod](t)(admin.Pods("default").Create(t.Context(), pod("theirs", "n2", "theirs"), metav1.CreateOptions{}))
	mine := must[*corev1.Pod](t)(admin.Pods("default").Create(t.Context(), pod("mine", "n1", "mine"), metav1.CreateOptions{}))
	// The authorizer learns of the pod by a watch of its own.
	eventually(t, "the secret of the node's own pod", func() error {
		_, err := core.Secrets("default").Get(t.Context(), "mine", metav1.GetOptions{})
		return err
	})
	mine.Status.Phase = corev1.PodRunning
	if _, err := core.Pods("default").UpdateStatus(t.Context(), mine, metav1.UpdateOptions{}); err != nil {
		t.Errorf("the status of the node's own pod: %v", err)
	}
	denied := func(what string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want forbidden", what, err)
		}
	}
	_, err := core.Secrets("default").Get(t.Context(), "theirs", metav1.GetOptions{})
	denied("another node's secret", err)
	denied("deleting another node's pod", core.Pods("default").Delete(t.Context(), "theirs", metav1.DeleteOptions{}))
	_, err = core.Nodes().Patch(t.Context(), "n2", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
	denied("another node's labels", err)
	_, err = core.Secrets("kube-system").List(t.Context(), metav1.ListOptions{})
	denied("all secrets", err)
	_, err = node.AppsV1().DaemonSets("default").List(t.Context(), metav1.ListOptions{})
	denied("daemonsets", err)
}

// eventually is for what only another watcher inside the server knows of.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func testAccountTokens(t *testing.T, f *fleet) {
	request := must[*authenticationv1.TokenRequest](t)(f.admin.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))
	client := kubernetes.NewForConfigOrDie(&rest.Config{Host: f.url, BearerToken: request.Status.Token, TLSClientConfig: rest.TLSClientConfig{CAData: f.config.CAData}})
	who := must[*authenticationv1.SelfSubjectReview](t)(client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}))
	if who.Status.UserInfo.Username != "system:serviceaccount:default:default" {
		t.Errorf("the token is of %q", who.Status.UserInfo.Username)
	}
	if _, err := client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a service account reads secrets: %v", err)
	}
}

func testNamespaceDeletion(t *testing.T, f *fleet) {
	core := f.admin.CoreV1()
	made := must[*corev1.Namespace](t)(core.Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "brief"}}, metav1.CreateOptions{}))
	f.awaitAccount(t, "brief")
	must[*corev1.ConfigMap](t)(core.ConfigMaps("brief").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}}, metav1.CreateOptions{}))
	watcher, err := core.Namespaces().Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=brief", ResourceVersion: made.ResourceVersion})
	if err := core.Namespaces().Delete(t.Context(), "brief", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, watcher, err, "namespace brief", watch.Deleted)
}

func testOwnersAreFollowed(t *testing.T, f *fleet) {
	maps := f.admin.CoreV1().ConfigMaps("default")
	owner := must[*corev1.ConfigMap](t)(maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{}))
	owned := must[*corev1.ConfigMap](t)(maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
		Name:            "owned",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner.UID}},
	}}, metav1.CreateOptions{}))
	watcher, err := maps.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=owned", ResourceVersion: owned.ResourceVersion})
	if err := maps.Delete(t.Context(), "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, watcher, err, "config map owned", watch.Deleted)
}

func testServicesWarn(t *testing.T, f *fleet) {
	made := must[*corev1.Service](t)(f.admin.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{}))
	if made.Spec.ClusterIP == "" || !strings.Contains(f.warned.String(), "services are stored but not routed") {
		t.Errorf("cluster IP %q, warnings %q", made.Spec.ClusterIP, f.warned)
	}
}

// testPrivilegedPods: daemons of nodes may be privileged.
func testPrivilegedPods(t *testing.T, f *fleet) {
	p := pod("privileged", "", "")
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
	if _, err := f.admin.CoreV1().Pods("default").Create(t.Context(), p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Error(err)
	}
}

func testAnonymous(t *testing.T, f *fleet) {
	anonymous := must[*http.Transport](t)(transport(&rest.Config{Host: f.url, TLSClientConfig: rest.TLSClientConfig{CAData: f.config.CAData}}))
	client := &http.Client{Transport: anonymous}
	for path, want := range map[string]int{
		"/healthz": 200, "/livez": 200, "/readyz": 200, "/version": 200,
		"/api/v1/nodes": 403, "/metrics": 403, "/apis": 403, "/openapi/v2": 403, tunnel.Path: 403,
		pki.JoinPath: 405,
	} {
		resp, err := client.Get(f.url + path)
		if err != nil {
			t.Error(err)
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d: %s", path, resp.StatusCode, want, body)
		}
		if path == "/version" && !json.Valid(body) {
			t.Errorf("/version: %s", body)
		}
	}
}

func testSecondServer(t *testing.T, f *fleet) {
	err := Run(t.Context(), Config{Dir: f.dir, Listen: "127.0.0.1"})
	if err == nil || !strings.Contains(err.Error(), "already runs there") {
		t.Errorf("a second server on the same directory: %v", err)
	}
}

func TestOutsideEtcd(t *testing.T) {
	etcd, err := startEtcd(t.Context(), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.stop)
	f := startWith(t, Config{Dir: t.TempDir(), Listen: "127.0.0.1", EtcdServers: []string{etcd.endpoint}})
	if _, err := f.admin.CoreV1().Namespaces().Get(t.Context(), "kube-system", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "server", "etcd")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an etcd of its own: %v", err)
	}
	f.stop()
}
