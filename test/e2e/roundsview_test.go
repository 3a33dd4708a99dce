package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// view is what the server says of the pods, for as long as the test lasts,
// whatever becomes of the server.
type view struct {
	t       *testing.T
	mu      sync.Mutex
	pods    map[types.UID]*corev1.Pod
	changed chan struct{}
	// twice are the times at which a node had two pods that were to live.
	twice []string
}

func watchPods(t *testing.T, client kubernetes.Interface, selector string) *view {
	v := &view{t: t, pods: map[types.UID]*corev1.Pod{}, changed: make(chan struct{})}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return client.CoreV1().Pods("default").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return client.CoreV1().Pods("default").Watch(ctx, o)
		},
	}
	reflector := cache.NewReflectorWithOptions(lw, &corev1.Pod{}, v, cache.ReflectorOptions{
		Name: "rounds", Backoff: &wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 5, Cap: 100 * time.Millisecond},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { reflector.RunWithContext(ctx) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return v
}

// news changes what is known and wakes who waits.
func (v *view) news(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
	live := map[string]string{}
	for _, p := range v.pods {
		if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		if other, twice := live[p.Spec.NodeName]; twice && p.Spec.NodeName != "" {
			v.twice = append(v.twice, fmt.Sprintf("%s: %s and %s", p.Spec.NodeName, other, p.Name))
		}
		live[p.Spec.NodeName] = p.Name
	}
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *view) Add(obj any) error {
	p := obj.(*corev1.Pod)
	v.news(func() { v.pods[p.UID] = p })
	return nil
}

func (v *view) Update(obj any) error { return v.Add(obj) }

func (v *view) Delete(obj any) error {
	v.news(func() { delete(v.pods, obj.(*corev1.Pod).UID) })
	return nil
}

func (v *view) Replace(list []any, _ string) error {
	v.news(func() {
		clear(v.pods)
		for _, obj := range list {
			v.pods[obj.(*corev1.Pod).UID] = obj.(*corev1.Pod)
		}
	})
	return nil
}

func (v *view) Resync() error { return nil }

// until waits until why is empty of the pods by name, and fails the test if it
// does not come to that or a node had two.
func (v *view) until(timeout time.Duration, why func(map[string]*corev1.Pod) string) {
	v.t.Helper()
	end := time.After(timeout)
	for {
		v.mu.Lock()
		pods := map[string]*corev1.Pod{}
		for _, p := range v.pods {
			pods[p.Name] = p
		}
		changed, twice := v.changed, slices.Clone(v.twice)
		v.mu.Unlock()
		if len(twice) > 0 {
			v.t.Fatalf("two pods that were to live on a node: %v", twice)
		}
		text := why(pods)
		if text == "" {
			return
		}
		select {
		case <-changed:
		case <-end:
			v.t.Fatalf("not within %s: %s; last seen: %s", timeout, text, describe(pods))
		}
	}
}

// footprint is what a fleet leaves in the system.
type footprint struct {
	// processes by the first words of their command lines, in order.
	processes []string
	cgroups   int
	mounts    int
	// files by the directories that grow and shrink with the pods.
	files map[string]int
}

func (a footprint) lines() []string {
	lines := append(slices.Clone(a.processes), fmt.Sprintf("%d cgroups", a.cgroups), fmt.Sprintf("%d mounts", a.mounts))
	for _, dir := range slices.Sorted(maps.Keys(a.files)) {
		lines = append(lines, fmt.Sprintf("%d files in %s", a.files[dir], dir))
	}
	return lines
}

func (r *rounds) footprint() footprint {
	r.t.Helper()
	now := footprint{files: map[string]int{}}
	_ = filepath.WalkDir(r.cgroup, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it went while it was looked at
		}
		now.cgroups++
		data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, pid := range strings.Fields(string(data)) {
			if cmdline, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline")); err == nil && len(cmdline) > 0 {
				words := strings.Split(string(cmdline), "\x00")
				now.processes = append(now.processes, filepath.Base(words[0])+" "+words[min(1, len(words)-1)])
			}
			now.mounts += mountsOf(pid, r.dir)
		}
		return nil
	})
	slices.Sort(now.processes)
	for _, node := range r.nodes {
		for _, dir := range []string{"agent/pods", "state", "run", "log"} {
			_ = filepath.WalkDir(filepath.Join(r.dir, "nodes", node, dir), func(path string, _ fs.DirEntry, err error) error {
				if err == nil {
					now.files[filepath.Join(node, dir)]++
				}
				return nil
			})
		}
	}
	return now
}

// cgroupsGone looks, when the fleet is down, whether anything is left of its
// hosts' trees in the hierarchies of version 1, where those are.
func (r *rounds) cgroupsGone() (look func()) {
	trees, _ := filepath.Glob(filepath.Join(r.cgroup, "legiond-*.service", "legion-*"))
	return func() {
		for _, tree := range trees {
			if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(tree)); len(left) > 0 {
				r.t.Errorf("cgroups left after legion down: %q", left)
			}
		}
	}
}

// mountsOf counts the mounts below a directory that a process sees.
func mountsOf(pid, dir string) int {
	f, err := os.Open(filepath.Join("/proc", pid, "mountinfo"))
	if err != nil {
		return 0
	}
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.Contains(lines.Text(), dir) {
			n++
		}
	}
	return n
}

// tidy waits until the round has left nothing behind.
func (r *rounds) tidy() {
	r.t.Helper()
	r.poll("nothing is left behind", func() string {
		was, now := r.base.lines(), r.footprint().lines()
		if slices.Equal(was, now) {
			return ""
		}
		gone := slices.DeleteFunc(slices.Clone(was), func(l string) bool { return slices.Contains(now, l) })
		came := slices.DeleteFunc(slices.Clone(now), func(l string) bool { return slices.Contains(was, l) })
		return fmt.Sprintf("%d things, were %d; gone: %q; new: %q", len(now), len(was), gone, came)
	})
}

// reached waits until the server can ask the node's agent.
func (r *rounds) reached(node string) {
	r.t.Helper()
	r.ask("reach "+node+" through its tunnel", func(ctx context.Context) error {
		_, err := r.client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("healthz").DoRaw(ctx)
		return err
	})
}

// vital is what a program says of itself.
type vital struct{ goroutines, files int }

// vitals asks the programs that are not killed; the server is only asked at the
// end, for it is.
func (r *rounds) vitals() map[string]vital {
	r.t.Helper()
	all := map[string]vital{}
	node := r.spared()
	for name, ask := range map[string]func(context.Context) ([]byte, error){
		"legiond": r.hostMetrics(node),
		"agent":   r.client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("metrics").DoRaw,
		"server":  r.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw,
	} {
		text, err := ask(r.t.Context())
		if err != nil {
			r.t.Fatalf("%s: metrics: %v", name, err)
		}
		all[name] = vital{metric(text, "go_goroutines"), metric(text, "process_open_fds")}
	}
	return all
}

// hostMetrics asks a node's legiond.
func (r *rounds) hostMetrics(node string) func(context.Context) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", r.socket(node))
		},
	}}
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://legiond/metrics", nil)
		if err != nil {
			return nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		return io.ReadAll(resp.Body)
	}
}

func metric(text []byte, name string) int {
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			f, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(f)
		}
	}
	return -1
}

// nothingLeaked compares what the programs hold with what they held before.
// What was lost on the way is let go by timeouts of up to half a minute.
func (r *rounds) nothingLeaked(before map[string]vital) {
	r.t.Helper()
	const slack = 10
	r.poll("goroutines and open files are as many as before", func() string {
		now := r.vitals()
		for name, was := range before {
			if is := now[name]; is.goroutines > was.goroutines+slack || is.files > was.files+slack || was.goroutines <= 0 || was.files <= 0 {
				return fmt.Sprintf("%s: %+v, was %+v", name, is, was)
			}
		}
		return ""
	})
	r.t.Logf("before %+v, after %+v", before, r.vitals())
}
