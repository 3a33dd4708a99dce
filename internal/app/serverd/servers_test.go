package serverd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/pki"
	"legion.dev/legion/test/sim"
)

// asProgram is set where this binary is to run as legion-server.
const asProgram = "LEGION_TEST_AS_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// startStore runs an etcd as one outside of the servers.
func startStore(t *testing.T) (endpoint string) {
	t.Helper()
	// A socket's path is short.
	dir, err := os.MkdirTemp("", "etcd-")
	if err != nil {
		t.Fatal(err)
	}
	config := embed.NewConfig()
	config.Dir, config.LogLevel = filepath.Join(dir, "data"), "fatal"
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(dir, "sock")}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ListenPeerUrls = nil
	// What is stored need not outlive the machine, and its disk may be busy.
	config.UnsafeNoFsync = true
	config.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	store, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		store.Close()
		_ = os.RemoveAll(dir)
	})
	select {
	case <-store.Server.ReadyNotify():
	case <-time.After(time.Minute):
		t.Fatal("the store did not start")
	}
	return "unix://" + filepath.Join(dir, "sock")
}

// server is a legion-server in a process of its own.
type server struct {
	*process
	dir, url string
	command  *exec.Cmd
	dead     chan struct{}
}

// startServer runs one that has the keys of the fleet.
func startServer(t *testing.T, dir, store string) *server {
	t.Helper()
	p := &process{t: t, ended: make(chan error, 1), wrote: make(chan struct{}, 1)}
	s := &server{process: p, dir: dir, dead: make(chan struct{})}
	s.command = exec.Command(os.Args[0], "--dir", dir, "--port", "0", "--etcd-servers", store)
	s.command.Env = append(os.Environ(), asProgram+"=1")
	s.command.Stdout, s.command.Stderr = p, p
	s.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.ended <- s.command.Wait()
		close(s.dead)
	}()
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("the server in %s said:\n%s", filepath.Base(dir), p.output())
		}
	})
	s.url = p.says(`msg=ready url=(\S+)`)[1]
	return s
}

func (s *server) kill() {
	_ = s.command.Process.Kill() // it may have ended
	<-s.dead
}

// shareKeys gives each directory the same CA and the same key for tokens.
func shareKeys(t *testing.T, dirs ...string) {
	t.Helper()
	first := filepath.Join(dirs[0], "server", "pki")
	if _, err := pki.OpenAuthority(first); err != nil {
		t.Fatal(err)
	}
	if err := pki.KeepKey(filepath.Join(first, "sa.key")); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs[1:] {
		if err := os.CopyFS(filepath.Join(dir, "server", "pki"), os.DirFS(first)); err != nil {
			t.Fatal(err)
		}
	}
}

// balance takes connections and hands each to a server that takes it, in turn.
func balance(t *testing.T, servers ...*server) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	var hosts []string
	for _, s := range servers {
		u, err := url.Parse(s.url)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, u.Host)
	}
	go func() {
		for turn := 0; ; turn++ {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			for i := range hosts {
				if up, err := net.Dial("tcp", hosts[(turn+i)%len(hosts)]); err == nil {
					go join(client, up)
					client = nil
					break
				}
			}
			if client != nil {
				_ = client.Close()
			}
		}
	}()
	return listener.Addr().String()
}

// join passes on what either side says, until one is gone.
func join(a, b net.Conn) {
	var once sync.Once
	end := func() { _ = a.Close(); _ = b.Close() }
	go func() { _, _ = io.Copy(a, b); once.Do(end) }()
	_, _ = io.Copy(b, a)
	once.Do(end)
}

// fleetOf is the administrator's configuration for an address.
func fleetOf(t *testing.T, s *server, url string) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", apiserver.AdminKubeconfig(s.dir))
	if err != nil {
		t.Fatal(err)
	}
	config.Host, config.QPS = url, -1
	return config
}

// A fleet with two servers on one etcd, behind one address. The one whose
// DaemonSet controller works is killed in the middle of an update: the other
// goes on with it within the budget, the nodes and other clients with the other.
func TestTwoServers(t *testing.T) {
	const nodes = 12
	store := startStore(t)
	dirs := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	shareKeys(t, dirs...)
	leads := startServer(t, dirs[0], store)
	leads.says("msg=leading lease=kube-system/legion-controller")
	other := startServer(t, dirs[1], store)
	other.says("standing by.*lease=kube-system/legion-controller")

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	config := fleetOf(t, leads, "https://"+balance(t, leads, other))
	client := kubernetes.NewForConfigOrDie(config)
	fleet, err := sim.Start(ctx, sim.Config{
		REST: config, Nodes: nodes, Seed: 3, Connections: 6, Renew: time.Second, Log: slog.New(slog.DiscardHandler),
		Start: sim.Span{Min: 100 * time.Millisecond, Max: 400 * time.Millisecond}, Stop: sim.Span{Max: 100 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	makeSet(t, client, anyRuntime)
	untilSet(t, client, "the first rollout", rolledTo("example.org/exporter:1", nodes))

	b := watchBudget(ctx, t, kubernetes.NewForConfigOrDie(fleetOf(t, other, other.url)), nodes)
	setImage(t, client, "example.org/exporter:2")
	b.until(t, "three pods are replaced", func(updated int) bool { return updated >= 3 })
	leads.kill()
	killed := time.Now()
	// Whoever asks by the one address is answered by the other server.
	for _, err = client.CoreV1().Nodes().List(ctx, metav1.ListOptions{}); err != nil; _, err = client.CoreV1().Nodes().List(ctx, metav1.ListOptions{}) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a client is answered %v after the kill", time.Since(killed).Round(time.Millisecond))
	at := b.updated()
	b.until(t, "the update goes on", func(updated int) bool { return updated > at })
	t.Logf("the next pod is replaced %v after the kill", time.Since(killed).Round(time.Millisecond))
	b.until(t, "all are replaced", func(updated int) bool { return updated == nodes })
	untilSet(t, client, "the second rollout", rolledTo("example.org/exporter:2", nodes))
	if worst := b.stop(); worst != 1 {
		t.Errorf("up to %d nodes were without an available pod, want exactly maxUnavailable, 1", worst)
	}
	other.says("msg=leading lease=kube-system/legion-controller")
	other.says("msg=leading lease=kube-system/legion-server")
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list.Items {
		if len(n.Spec.Taints) > 0 {
			t.Errorf("node %s was taken for lost: %v", n.Name, n.Spec.Taints)
		}
	}

	// The one that was killed comes back, and stands by.
	again := startServer(t, dirs[0], store)
	again.says("standing by.*lease=kube-system/legion-controller")
	if err := fleet.Join("late"); err != nil {
		t.Fatal(err)
	}
	untilSet(t, kubernetes.NewForConfigOrDie(fleetOf(t, again, again.url)), "a node that joins is covered", rolledTo("example.org/exporter:2", nodes+1))
	cancel()
	fleet.Wait()

	// One that is stopped in order gives up what it holds before it ends, and
	// the one that waits for it goes on at once.
	if err := other.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	asked := time.Now()
	for _, name := range []string{"legion-controller", "legion-server"} {
		again.says("msg=leading lease=kube-system/" + name)
		t.Logf("%s is led by the other one %v after the stop was asked for", name, time.Since(asked).Round(time.Millisecond))
	}
	<-other.dead
	t.Logf("the server ended %v after that", time.Since(asked).Round(time.Millisecond))
	if code := other.command.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the server that was stopped ended with status %d", code)
	}
	leases := kubernetes.NewForConfigOrDie(fleetOf(t, again, again.url)).CoordinationV1().Leases(metav1.NamespaceSystem)
	for _, name := range []string{"legion-controller", "legion-server"} {
		lease, err := leases.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// Who takes over a Lease that was not given up waits for its end first.
		if taken := lease.Spec.AcquireTime.Sub(asked); taken > 10*time.Second {
			t.Errorf("the Lease %s was taken %v after the stop", name, taken)
		}
	}
}

// anyRuntime is for simulated nodes, which state no runtime handlers.
func anyRuntime(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.RuntimeClassName = nil }

// budget follows the pods of a DaemonSet.
type budget struct {
	mu      sync.Mutex
	pods    map[string]*corev1.Pod
	worst   int
	changed chan struct{}
	end     func()
}

// watchBudget has each event checked: no node has two pods, and how many are
// without an available one.
func watchBudget(ctx context.Context, t *testing.T, client kubernetes.Interface, nodes int) *budget {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	b := &budget{pods: map[string]*corev1.Pod{}, changed: make(chan struct{}, 1)}
	list, err := client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		b.pods[list.Items[i].Name] = &list.Items[i]
	}
	w, err := client.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	b.end = func() { cancel(); w.Stop(); <-done }
	go func() {
		defer close(done)
		for e := range w.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				if ctx.Err() == nil {
					t.Errorf("the watch ended: %v", e)
				}
				continue
			}
			if twice := b.take(string(e.Type), pod, nodes); twice != "" {
				t.Errorf("two pods on node %s", twice)
			}
		}
	}()
	return b
}

// take notes an event and returns a node with two pods, if there is one.
func (b *budget) take(kind string, pod *corev1.Pod, nodes int) (twice string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pods[pod.Name] = pod; kind == "DELETED" {
		delete(b.pods, pod.Name)
	}
	on, up := map[string]bool{}, 0
	for _, p := range b.pods {
		if on[p.Spec.NodeName] {
			twice = p.Spec.NodeName
		}
		on[p.Spec.NodeName] = true
		if p.DeletionTimestamp == nil && podutils.IsPodReady(p) {
			up++
		}
	}
	b.worst = max(b.worst, nodes-up)
	select {
	case b.changed <- struct{}{}:
	default:
	}
	return twice
}

// updated counts the pods of the second image that are ready.
func (b *budget) updated() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.pods {
		if p.Spec.Containers[0].Image == "example.org/exporter:2" && podutils.IsPodReady(p) {
			n++
		}
	}
	return n
}

func (b *budget) until(t *testing.T, what string, ok func(updated int) bool) {
	t.Helper()
	for late := time.After(time.Minute); !ok(b.updated()); {
		select {
		case <-b.changed:
		case <-late:
			t.Fatalf("%s: not within a minute, %d are", what, b.updated())
		}
	}
}

func (b *budget) stop() (worst int) {
	b.end()
	return b.worst
}
