package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/bench/figures"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
)

// patience bounds the wait for one pod, and for all of them.
const patience = time.Minute

// node is what is measured.
type node struct {
	options
	dir  string
	api  kubernetes.Interface
	host *hostclient.Client
}

func measureNode(ctx context.Context, o options, dir string) ([]*figures.Series, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	n := &node{options: o, dir: dir, host: hostclient.New(filepath.Join(dir, "nodes", "n1", "host.sock"))}
	if n.api, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	process, ready := &figures.Series{Name: "pod added → host process running", Target: "100 ms", Unit: "ms"}, &figures.Series{Name: "pod added → Ready in the API", Unit: "ms"}
	container, containerReady := &figures.Series{Name: "pod of an unpacked image added → the container's process says its first word", Target: "400 ms", Unit: "ms"}, &figures.Series{Name: "pod of an unpacked image added → Ready in the API", Unit: "ms"}
	many := &figures.Series{Name: fmt.Sprintf("%d pods added → all running", o.together), Target: "5 s", Unit: "s"}
	manyReady := &figures.Series{Name: fmt.Sprintf("%d pods added → all Ready in the API", o.together), Unit: "s"}
	rss := &figures.Series{Name: "`legion-agent` RSS, 10 pods, idle", Target: "30 MB", Unit: "MB"}
	cpu := &figures.Series{Name: "`legion-agent`, 10 pods, idle: of one processor", Target: "1 %", Unit: "%"}
	all := []*figures.Series{process, ready, container, containerReady, many, manyReady, rss, cpu}

	log.Printf("%d host processes, one after the other", o.rounds)
	if err := n.oneByOne(ctx, n.hostPod, process, ready); err != nil {
		return nil, err
	}
	if image, err := n.importImage(ctx); err != nil {
		log.Printf("no containers are measured: %v", err)
	} else {
		log.Printf("%d containers, one after the other", o.rounds)
		if err := n.oneByOne(ctx, func(name string) *corev1.Pod { return n.imagePod(name, image) }, container, containerReady); err != nil {
			return nil, err
		}
	}
	for range o.runs {
		log.Printf("%d pods at once", o.together)
		running, ready, err := n.start(ctx, o.together, n.hostPod)
		if err != nil {
			return nil, err
		}
		many.Add(running.Seconds())
		manyReady.Add(ready.Seconds())
	}
	if err := n.idleAgent(ctx, rss, cpu); err != nil {
		return nil, err
	}
	return all, nil
}

// oneByOne starts pods that are new to the node. The first warms up what is
// started once, and is not counted.
func (n *node) oneByOne(ctx context.Context, pod func(string) *corev1.Pod, process, readied *figures.Series) error {
	for i := range n.rounds + 1 {
		running, ready, err := n.start(ctx, 1, pod)
		if err != nil {
			return err
		}
		if i > 0 {
			process.Add(float64(running.Microseconds()) / 1000)
			readied.Add(float64(ready.Microseconds()) / 1000)
		}
	}
	return nil
}

// start adds pods at once and says how long it takes from before the first
// request until the last one's process was started, by the host's word, and
// until the last is Ready, by the API's. It removes them.
func (n *node) start(ctx context.Context, count int, pod func(string) *corev1.Pod) (running, ready time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := n.api.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=bench"})
	if err != nil {
		return 0, 0, err
	}
	// One that goes on where it was, if the server ends it for being slow.
	w, err := watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = "app=bench"
			return n.api.CoreV1().Pods("default").Watch(ctx, o)
		},
	})
	if err != nil {
		return 0, 0, err
	}
	defer w.Stop()
	began := time.Now()
	created := make(chan error, 1)
	// Beside the watch, which the server ends if nobody reads it.
	go func() { created <- n.create(ctx, count, pod) }()
	uids := map[string]bool{}
	if err := follow(ctx, w, func(p *corev1.Pod, gone bool) bool {
		if !gone && podutils.IsPodReady(p) {
			uids["pod-"+string(p.UID)] = true
		}
		return len(uids) == count
	}); err != nil {
		return 0, 0, fmt.Errorf("%d of %d pods are Ready: %w", len(uids), count, err)
	}
	ready = time.Since(began)
	if err := <-created; err != nil {
		return 0, 0, err
	}
	groups, err := n.host.Groups(ctx)
	if err != nil {
		return 0, 0, err
	}
	for _, g := range groups {
		if !uids[g.Spec.Name] {
			continue
		}
		at, err := n.startedAt(ctx, g)
		if err != nil {
			return 0, 0, err
		}
		running = max(running, at.Sub(began))
	}
	return running, ready, n.remove(ctx, w, count)
}

// startedAt is when a process of the host was started, and when a container's
// own said its first word: its main process is the runtime's.
func (n *node) startedAt(ctx context.Context, g hostapi.Group) (time.Time, error) {
	if len(g.Status.Services) == 0 || g.Status.Services[0].Main == nil {
		return time.Time{}, fmt.Errorf("%s has not been started", g.Spec.Name)
	}
	if g.Spec.Services[0].Exec.Container == nil {
		return g.Status.Services[0].Main.Started, nil
	}
	// Its word may come after its pod is Ready.
	body, err := n.host.Logs(ctx, g.Spec.Name, hostapi.LogQuery{Tail: -1, Follow: true})
	if err != nil {
		return time.Time{}, err
	}
	defer body.Close()
	line, err := bufio.NewReader(body).ReadString(' ')
	if err != nil {
		return time.Time{}, fmt.Errorf("%s has said nothing: %w", g.Spec.Name, err)
	}
	return time.Parse(time.RFC3339Nano, strings.TrimSpace(line))
}

func (n *node) create(ctx context.Context, count int, pod func(string) *corev1.Pod) error {
	failed := make(chan error, count)
	for i := range count {
		go func() {
			_, err := n.api.CoreV1().Pods("default").Create(ctx, pod(fmt.Sprintf("bench-%d", i)), metav1.CreateOptions{})
			failed <- err
		}()
	}
	var errs []error
	for range count {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// remove deletes the pods and waits until they are gone.
func (n *node) remove(ctx context.Context, w watch.Interface, count int) error {
	deleted := make(chan error, 1)
	go func() {
		deleted <- n.api.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=bench"})
	}()
	gone := 0
	err := follow(ctx, w, func(_ *corev1.Pod, g bool) bool {
		if g {
			gone++
		}
		return gone == count
	})
	return errors.Join(err, <-deleted)
}

// follow gives each event to done until it is.
func follow(ctx context.Context, w watch.Interface, done func(p *corev1.Pod, gone bool) bool) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-w.ResultChan():
			p, isPod := ev.Object.(*corev1.Pod)
			if !ok || !isPod {
				return fmt.Errorf("the watch broke: %v", ev.Object)
			}
			if done(p, ev.Type == watch.Deleted) {
				return nil
			}
		}
	}
}

func (n *node) hostPod(name string) *corev1.Pod {
	class, no, grace := "host", false, int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "bench"}},
		Spec: corev1.PodSpec{
			NodeName: "n1", RuntimeClassName: &class, AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{Name: "main", Image: "host", Command: []string{"sleep", "86440"}}},
		},
	}
}

func (n *node) imagePod(name, image string) *corev1.Pod {
	p := n.hostPod(name)
	p.Spec.RuntimeClassName = nil
	p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = image, nil
	p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever
	return p
}

// idleAgent takes what the agent needs while ten pods run and nothing happens.
func (n *node) idleAgent(ctx context.Context, rss, cpu *figures.Series) error {
	if err := n.create(ctx, 10, n.hostPod); err != nil {
		return err
	}
	pid, err := n.agentPID(ctx)
	if err != nil {
		return err
	}
	log.Printf("the agent with 10 pods, for %s", n.settle+n.idle)
	time.Sleep(n.settle)
	mb, err := resident(pid)
	if err != nil {
		return err
	}
	rss.Add(mb)
	before, err := busy(pid)
	if err != nil {
		return err
	}
	time.Sleep(n.idle)
	after, err := busy(pid)
	cpu.Add(100 * (after - before).Seconds() / n.idle.Seconds())
	return err
}

func (n *node) agentPID(ctx context.Context) (int, error) {
	g, err := hostclient.New(filepath.Join(n.dir, "host.sock")).Group(ctx, "legion-agent-n1.service")
	if err != nil {
		return 0, err
	}
	return g.Status.Services[0].Main.PID, nil
}

// resident is a process's resident memory in MB (10^6 bytes).
func resident(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(data))[1], 64)
	return pages * float64(os.Getpagesize()) / 1e6, err
}

// busy is the processor time that a process has used, by its scheduler's clock.
func busy(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, errors.Join(err, fmt.Errorf("process %d has no schedstat", pid))
	}
	var sum time.Duration
	for _, t := range tasks {
		data, err := os.ReadFile(t)
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// importImage makes an image of one static program and gives it to the node.
func (n *node) importImage(ctx context.Context) (string, error) {
	const name = "bench.example/pod:1"
	archive := filepath.Join(n.dir, "image.tar")
	program := filepath.Join(n.dir, "standin")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "legion.dev/legion/test/standin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := run(build); err != nil {
		return "", err
	}
	if err := writeImage(archive, name, program); err != nil {
		return "", err
	}
	return name, run(exec.CommandContext(ctx, filepath.Join(n.bin, "legion"), "image", "import", "--dir", filepath.Join(n.dir, "nodes", "n1", "images"), archive))
}
