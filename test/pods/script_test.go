package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/sandbox"
)

// The runtimes, by their runtimeClassName.
const (
	hostRuntime = "host"
	ociRuntime  = "oci"
)

// TestPods runs each script of testdata once for each runtime.
func TestPods(t *testing.T) {
	need(t)
	for _, runtime := range []string{hostRuntime, ociRuntime} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			testscript.Run(t, params(runtime))
		})
	}
}

func params(runtime string) testscript.Params {
	return testscript.Params{
		Dir:                "testdata",
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			s, err := newScript(shared, runtime, strings.TrimPrefix(filepath.Base(e.WorkDir), "script-"))
			if err != nil {
				return err
			}
			e.Values[key{}] = s
			e.Defer(s.end)
			e.Setenv("AT", s.at)
			e.Setenv("PORT", s.port)
			e.Setenv("STANDIN", s.standin())
			e.Setenv("NAMESPACE", s.namespace)
			e.Setenv("SECCOMP", filepath.Join(s.fleet.home(), "nodes", node, "agent", "seccomp"))
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "cap" {
				return hasResource(), nil
			}
			if cond == "idmap" {
				return idmaps(shared.dir), nil
			}
			if cond != hostRuntime && cond != ociRuntime {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return cond == runtime, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"apply": apply, "until": until, "log": readLog, "event": event, "delete": remove, "gone": gone,
			"now": now, "in": in, "condition": condition, "debug": debug, "push": push,
			"process": process, "namespaces": namespaces, "signal": signal, "cgroup": limits, "mount": mount, "mounted": mounted,
			"begin": begin, "say": say, "see": see, "size": size, "leave": leave, "ended": ended, "strike": killPrograms, "over": over,
		},
	}
}

// hasResource: the machine gives its root CAP_SYS_RESOURCE, as containers'
// engines do not.
func hasResource() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[0].Permitted&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// idmaps: the machine can make user namespaces, and mount for them what is below
// a directory as if they owned it.
func idmaps(dir string) bool {
	users, err := sandbox.MappedUsers(1<<30, 1<<16)
	if err != nil {
		return false
	}
	defer func() { _ = users.Close() }()
	at, err := os.MkdirTemp(dir, "idmap-")
	if err != nil || mounts.Idmapped(at, at, users) != nil {
		return false
	}
	return unix.Unmount(at, unix.MNT_DETACH) == nil
}

type key struct{}

func of(ts *testscript.TestScript) *script { return ts.Value(key{}).(*script) }

// script is one script's run: a namespace, and all that was seen of its pods.
type script struct {
	fleet              *fleet
	runtime, namespace string
	// at is a directory of the node that no other script uses; port is the
	// first of ten.
	at, port string
	sessions map[string]*session
	replace  *strings.Replacer
	cancel   context.CancelFunc

	mu sync.Mutex
	// seen are the states of each pod, the oldest first; a nil is its end.
	seen map[string][]*corev1.Pod
	// matched is where the last match was: a script does not look back.
	matched map[string]int
	changed chan struct{}
	ended   error
}

// ports gives each script ports of its own: pods have the node's network.
var ports atomic.Int32

func newScript(f *fleet, runtime, name string) (*script, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &script{
		fleet: f, runtime: runtime, namespace: name + "-" + runtime, cancel: cancel,
		at: filepath.Join(f.dir, "at", name+"-"+runtime), port: fmt.Sprint(21000 + 10*ports.Add(1)),
		seen: map[string][]*corev1.Pod{}, matched: map[string]int{}, changed: make(chan struct{}),
	}
	values := []string{"@AT@", s.at, "@PORT@", s.port, "@STANDIN@", s.standin(), "@NODE@", node, "@RUNTIME@", runtime, "@NAMESPACE@", s.namespace}
	for i := range 10 {
		values = append(values, fmt.Sprintf("@PORT%d@", i), s.port[:len(s.port)-1]+strconv.Itoa(i))
	}
	s.replace = strings.NewReplacer(values...)
	if err := errors.Join(os.MkdirAll(s.at, 0o755), s.prepare(ctx)); err != nil {
		cancel()
		return nil, err
	}
	w, err := f.api.CoreV1().Pods(s.namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		cancel()
		return nil, err
	}
	go s.follow(w)
	return s, nil
}

func (s *script) standin() string {
	if s.runtime == hostRuntime {
		return s.fleet.standin
	}
	return "/standin"
}

// follow keeps what the watch brings.
func (s *script) follow(w watch.Interface) {
	for ev := range w.ResultChan() {
		p, ok := ev.Object.(*corev1.Pod)
		s.mu.Lock()
		if !ok {
			s.ended = fmt.Errorf("the watch brought %+v", ev.Object)
		} else {
			s.fleet.pods.Store(p.UID, nil)
			s.seen[p.Name] = append(s.seen[p.Name], p)
			if ev.Type == watch.Deleted {
				s.seen[p.Name] = append(s.seen[p.Name], nil)
			}
		}
		s.tell()
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		s.ended = errors.New("the watch ended")
	}
	s.tell()
}

func (s *script) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// news is closed when more is seen.
func (s *script) news() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// end takes the script's namespace away, with all that is in it.
func (s *script) end() {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(table)) {
		// What pods have mounted and left.
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, s.at+"/") {
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	}
	_ = s.fleet.api.CoreV1().Namespaces().Delete(context.Background(), s.namespace, metav1.DeleteOptions{})
	s.cancel()
}

// await waits until ok says so of a pod's state, of which it looks at each from
// the one on that matched last; nil is that the pod is gone.
func (s *script) await(pod string, ok func(p *corev1.Pod) (bool, error)) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		news := s.news()
		s.mu.Lock()
		seen, from, ended := s.seen[pod], s.matched[pod], s.ended
		s.mu.Unlock()
		for i := from; i < len(seen); i++ {
			yes, err := ok(seen[i])
			if err != nil {
				return nil, err
			}
			if yes {
				s.mu.Lock()
				s.matched[pod] = i
				s.mu.Unlock()
				return seen[i], nil
			}
		}
		if ended != nil {
			return nil, ended
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, fmt.Errorf("not within %s", patience)
		}
	}
}

// last is the newest state of a pod.
func (s *script) last(pod string) *corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.seen[pod]) - 1; i >= 0; i-- {
		if p := s.seen[pod][i]; p != nil {
			return p
		}
	}
	return nil
}

// report is what was seen of a pod, for a failure.
func (s *script) report(pod string) string {
	var b strings.Builder
	p := s.last(pod)
	if p == nil {
		return "nothing was seen of pod " + pod
	}
	fmt.Fprintf(&b, "last seen of pod %s:\n\t%s\n", pod, strings.Join(lines(p), "\n\t"))
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			text, err := s.log(context.Background(), pod, c.Name, false, nil)
			if len(text) > 60 {
				text = text[len(text)-60:]
			}
			fmt.Fprintf(&b, "log of %s (%v):\n\t%s\n", c.Name, err, strings.Join(text, "\n\t"))
			if c.RestartCount > 0 {
				text, err := s.log(context.Background(), pod, c.Name, true, nil)
				fmt.Fprintf(&b, "before (%v):\n\t%s\n", err, strings.Join(text, "\n\t"))
			}
		}
	}
	// What the runtime has said of a container that did not start.
	files, _ := filepath.Glob(filepath.Join(s.fleet.home(), "nodes", node, "log", podspec.GroupName(p.UID), "*", "0*.log"))
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), "level=error") {
			fmt.Fprintf(&b, "%s:\n%s\n", file, text)
		}
	}
	return b.String()
}
