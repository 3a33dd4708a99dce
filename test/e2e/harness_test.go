// Package e2e runs the four programs as a person would and looks at what the
// system then does: processes in /proc, objects through a stock kubectl, events
// through a watch. It runs with LEGION_E2E=1 (`make e2e`).
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/test/built"
)

// need skips a test that starts real fleets and daemons, unless asked for.
func need(t *testing.T) {
	t.Helper()
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to run real fleets")
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	need(t)
	if os.Getuid() != 0 {
		t.Skip("needs root: network namespaces and mounts")
	}
}

// fleet is a running fleet and the means to look at it.
type fleet struct {
	dir    string
	client kubernetes.Interface
}

var (
	sharedOnce sync.Once
	shared     *fleet
	sharedErr  error
)

// shareFleet starts the fleet of three nodes that most tests use, once.
func shareFleet(t *testing.T) *fleet {
	t.Helper()
	need(t)
	sharedOnce.Do(func() {
		var dir string
		if dir, sharedErr = os.MkdirTemp("", "legion-e2e-"); sharedErr != nil {
			return
		}
		shared = &fleet{dir: dir}
		_, sharedErr = run(3*time.Minute, "legion", "up", "--dir", dir, "--nodes", "3", "--port", "0")
		if sharedErr != nil {
			return
		}
		shared.client, sharedErr = clientFor(dir)
	})
	if sharedErr != nil {
		t.Fatal(sharedErr)
	}
	return shared
}

func clientFor(dir string) (kubernetes.Interface, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	cfg.QPS = -1
	return kubernetes.NewForConfig(cfg)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared != nil {
		if out, err := run(time.Minute, "legion", "down", "--dir", shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, out, err)
			code = 1
		}
		if left := processesUnder(shared.dir); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "processes left after legion down: %v\n", left)
			code = 1
		}
		if code == 0 {
			_ = os.RemoveAll(shared.dir)
		} else {
			fmt.Fprintln(os.Stderr, "the fleet's files are kept in", shared.dir)
		}
	}
	os.Exit(code)
}

// run runs one of Legion's programs, or any other, and returns what it printed.
func run(timeout time.Duration, name string, args ...string) (string, error) {
	return runEnv(timeout, nil, "", name, args...)
}

func runEnv(timeout time.Duration, env []string, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if strings.HasPrefix(name, "legion") {
		name = filepath.Join(built.Dir(), name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

func mustRun(t *testing.T, timeout time.Duration, name string, args ...string) string {
	t.Helper()
	out, err := run(timeout, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kubectl runs the stock kubectl where there is one, else the built-in one.
func (f *fleet) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := f.tryKubectl("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *fleet) tryKubectl(stdin string, args ...string) (string, error) {
	name, args := f.kubectlCommand(args...)
	return runEnv(2*time.Minute, nil, stdin, name, args...)
}

func (f *fleet) kubectlCommand(args ...string) (name string, all []string) {
	args = append([]string{"--kubeconfig", filepath.Join(f.dir, "admin.kubeconfig")}, args...)
	if path, err := exec.LookPath("kubectl"); err == nil {
		return path, args
	}
	return filepath.Join(built.Dir(), "legion"), append([]string{"kubectl"}, args...)
}

func (f *fleet) apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := f.tryKubectl(manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// daemonSet is a manifest of one DaemonSet with one host process.
func daemonSet(name string, command ...string) string {
	quoted := make([]string, len(command))
	for i, c := range command {
		quoted[i] = strconv.Quote(c)
	}
	return fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: %[1]s
  namespace: default
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      runtimeClassName: host
      terminationGracePeriodSeconds: 2
      automountServiceAccountToken: false
      containers:
      - name: main
        image: host
        command: [%[2]s]
`, name, strings.Join(quoted, ", "))
}

// deploy applies a DaemonSet, waits until every wanted pod is ready and removes
// it with the test.
func (f *fleet) deploy(t *testing.T, name, manifest string) {
	t.Helper()
	f.apply(t, manifest)
	t.Cleanup(func() {
		if out, err := f.tryKubectl("", "delete", "ds", name, "--wait=true", "--cascade=foreground", "--timeout=30s"); err != nil {
			t.Log(out, err)
		}
	})
	f.kubectl(t, "rollout", "status", "ds/"+name, "--timeout=30s")
}

// pods lists the pods of an app by node.
func (f *fleet) pods(t *testing.T, app string) map[string]corev1.Pod {
	t.Helper()
	list, err := f.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	byNode := map[string]corev1.Pod{}
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			byNode[p.Spec.NodeName] = p
		}
	}
	return byNode
}

// untilPods waits until the pods of an app, kept up to date by a watch, satisfy
// cond, and returns when that was first seen.
func (f *fleet) untilPods(t *testing.T, app string, timeout time.Duration, what string, cond func(map[string]*corev1.Pod) bool) time.Time {
	t.Helper()
	pods := map[string]*corev1.Pod{}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = "app=" + app
			return f.client.CoreV1().Pods("default").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = "app=" + app
			return f.client.CoreV1().Pods("default").Watch(ctx, o)
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	list, err := lw.ListWithContextFunc(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	podList := list.(*corev1.PodList)
	for i := range podList.Items {
		pods[podList.Items[i].Name] = &podList.Items[i]
	}
	if cond(pods) {
		return time.Now()
	}
	w, err := watchtools.NewRetryWatcherWithContext(ctx, podList.ResourceVersion, lw)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s; last seen: %s", what, timeout, describe(pods))
		case ev := <-w.ResultChan():
			p, ok := ev.Object.(*corev1.Pod)
			if !ok {
				t.Fatalf("%s: watch: %v", what, ev)
			}
			if ev.Type == watch.Deleted {
				delete(pods, p.Name)
			} else {
				pods[p.Name] = p
			}
			if cond(pods) {
				return time.Now()
			}
		}
	}
}

func describe(pods map[string]*corev1.Pod) string {
	var b strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&b, "\n  %s on %s: %s ready=%v deleting=%v", p.Name, p.Spec.NodeName, p.Status.Phase, podutils.IsPodReady(p), p.DeletionTimestamp != nil)
		for _, c := range p.Status.ContainerStatuses {
			fmt.Fprintf(&b, " restarts=%d %+v", c.RestartCount, c.State)
		}
	}
	return b.String()
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// socket is the host socket of a node, or of the fleet's own legiond for "".
func (f *fleet) socket(node string) string {
	if node == "" {
		return filepath.Join(f.dir, "host.sock")
	}
	return filepath.Join(f.dir, "nodes", node, "host.sock")
}

func (f *fleet) host(node string) *hostclient.Client { return hostclient.New(f.socket(node)) }

// groupOf is the group that runs a pod on its node.
func (f *fleet) groupOf(t *testing.T, p corev1.Pod) hostapi.Group {
	t.Helper()
	g, err := f.host(p.Spec.NodeName).Group(t.Context(), "pod-"+string(p.UID))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func mainRun(t *testing.T, g hostapi.Group) service.Run {
	t.Helper()
	if len(g.Status.Services) == 0 || g.Status.Services[0].Main == nil || g.Status.Services[0].Main.Exit != nil {
		t.Fatalf("%s: no running process: %+v", g.Spec.Name, g.Status)
	}
	return *g.Status.Services[0].Main
}

// untilGroup waits until a host says cond of one of its groups.
func untilGroup(t *testing.T, c *hostclient.Client, name string, timeout time.Duration, what string, cond func(*hostapi.Group) bool) *hostapi.Group {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var found, last *hostapi.Group
	err := c.Watch(ctx, func(ev hostapi.Event) error {
		if ev.Name != name || ev.Group == nil {
			return nil
		}
		last = ev.Group
		if cond(ev.Group) {
			found = ev.Group
			cancel()
		}
		return nil
	})
	if found == nil {
		t.Fatalf("%s: %s: not within %s (%v); last: %+v", name, what, timeout, err, last)
	}
	return found
}

// untilPids waits until just n processes have the command line argv, which they
// may have from an exec of their own, and says which there are if it does not
// come to that.
func untilPids(t *testing.T, n int, argv ...string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); len(pidsOf(argv...)) != n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("want %d processes %q, got %v", n, argv, pidsOf(argv...))
			return
		}
	}
}

// pidsOf finds the processes whose command line is exactly argv.
func pidsOf(argv ...string) []int {
	want := strings.Join(argv, "\x00") + "\x00"
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil && string(cmdline) == want {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// processesUnder finds processes that name a directory in their command line.
func processesUnder(dir string) []string {
	var left []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if bytes.Contains(cmdline, []byte(dir)) {
			left = append(left, strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return left
}

func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill -9 %d: %v", pid, err)
	}
}
