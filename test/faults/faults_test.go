package faults

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/controller"
)

func TestMain(m *testing.M) {
	if os.Getenv("LEGION_FAULTS_LOG") == "" {
		klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	}
	// The other handler waits by the clock of the machine.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	os.Exit(m.Run())
}

// logger says what the controllers say, where that is asked for.
func logger() *slog.Logger {
	if os.Getenv("LEGION_FAULTS_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

// seeds runs a test with as many seeds as are asked for.
func seeds(t *testing.T, most int, f func(t *testing.T, seed uint64)) {
	t.Helper()
	first := uint64(1)
	if s := os.Getenv("LEGION_FAULTS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, most = n, 1
	} else if s := os.Getenv("LEGION_FAULTS_SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		most = n
	}
	for seed := first; seed < first+uint64(most) && !t.Failed(); seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, seed) })
		})
	}
}

// world is a cluster with one DaemonSet, its agents, and the controllers.
type world struct {
	*testing.T
	*api
	seed   uint64
	random *rand.Rand
	nodes  []string
	surge  bool
	most   int // maxUnavailable or maxSurge, in nodes
	bind   bool
	// counting: each node has had its pod, and must not lose it beyond most.
	counting bool

	ctx   context.Context
	stop  context.CancelFunc
	group sync.WaitGroup
	worst int
}

func newWorld(t *testing.T, seed uint64) *world {
	random := rand.New(rand.NewPCG(seed, 1))
	ctx, stop := context.WithCancel(context.Background())
	w := &world{
		T: t, api: newAPI(rand.New(rand.NewPCG(seed, 2))), seed: seed, random: random,
		surge: random.IntN(2) == 0, most: 1 + random.IntN(3), bind: random.IntN(2) == 0, ctx: ctx, stop: stop,
	}
	w.plain = random.IntN(4) == 0
	t.Cleanup(w.end)
	w.api.seen = w.see
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range 6 + random.IntN(6) {
		name := fmt.Sprintf("n%02d", i)
		w.nodes = append(w.nodes, name)
		w.add("nodes", &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status: corev1.NodeStatus{
				Allocatable: corev1.ResourceList{corev1.ResourcePods: *resourceOf(110)},
				Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			},
		})
	}
	amount, none := intstr.FromInt(w.most), intstr.FromInt32(0)
	ru := &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &amount, MaxSurge: &none}
	if w.surge {
		ru.MaxUnavailable, ru.MaxSurge = &none, &amount
	}
	limit := int32(10)
	match := map[string]string{"app": "d"}
	w.add("daemonsets", &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "d"},
		Spec: appsv1.DaemonSetSpec{
			Selector:             &metav1.LabelSelector{MatchLabels: match},
			UpdateStrategy:       appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: ru},
			RevisionHistoryLimit: &limit,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: match},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "d:1"}}},
			},
		},
	})
	return w
}

// update gives the DaemonSet another template.
func (w *world) update(image string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ds := w.daemonSet().DeepCopy()
	ds.Spec.Template.Spec.Containers[0].Image = image
	ds.Generation++
	w.commit("daemonsets", "MODIFIED", ds)
}

func (w *world) daemonSet() *appsv1.DaemonSet {
	return w.store["daemonsets"]["default/d"].(*appsv1.DaemonSet)
}

// see checks what must hold after each change, and has the agents do their part.
func (w *world) see(c change) {
	if c.resource != "pods" {
		return
	}
	pod := c.object.(*corev1.Pod)
	if c.kind != "DELETED" {
		w.serve(pod)
	}
	on := map[string][]*corev1.Pod{}
	for _, o := range w.store["pods"] {
		p := o.(*corev1.Pod)
		on[target(p)] = append(on[target(p)], p)
	}
	down, twice := 0, 0
	for _, node := range w.nodes {
		up, live := false, 0
		for _, p := range on[node] {
			if p.DeletionTimestamp == nil {
				live++
				up = up || ready(p)
			}
		}
		if live > 1 {
			twice++
		}
		if !up {
			down++
		}
		if most := 1; live > most && !w.surge || live > 2 || len(on[node]) > 1 && !w.surge {
			w.Errorf("seed %d: %d pods on %s, %d of them live: after %s of %s", w.seed, len(on[node]), node, live, c.kind, pod.Name)
		}
	}
	mayDown, mayTwice := w.most, 0
	if w.surge {
		mayDown, mayTwice = 0, w.most
	}
	if w.counting {
		w.worst = max(w.worst, down, twice)
		if down > mayDown || twice > mayTwice {
			w.Errorf("seed %d: %d nodes are down and %d have two pods, allowed are %d and %d: after %s of %s", w.seed, down, twice, mayDown, mayTwice, c.kind, pod.Name)
		}
	}
}

func target(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	return p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields[0].Values[0]
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// serve has a pod bound, made ready or ended after a while; the lock is held.
func (w *world) serve(pod *corev1.Pod) {
	then := func(f func(p *corev1.Pod)) {
		time.AfterFunc(time.Duration(50+w.api.random.IntN(2000))*time.Millisecond, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			now, there := w.store["pods"][keyOf(pod)].(*corev1.Pod)
			if there && now.UID == pod.UID && w.ctx.Err() == nil {
				f(now.DeepCopy())
			}
		})
	}
	switch {
	case pod.DeletionTimestamp != nil:
		then(func(p *corev1.Pod) { w.commit("pods", "DELETED", p) })
	case pod.Spec.NodeName == "":
		then(func(p *corev1.Pod) {
			p.Spec.NodeName = target(p)
			w.commit("pods", "MODIFIED", p)
		})
	case !ready(pod):
		then(func(p *corev1.Pod) {
			if p.DeletionTimestamp != nil || ready(p) {
				return
			}
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{
				Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(w.now().Truncate(time.Second)),
			}}
			w.commit("pods", "MODIFIED", p)
		})
	}
}

// connect returns a new way to the API server on which nothing goes wrong yet.
func (w *world) connect() *conn {
	return &conn{api: w.api, random: rand.New(rand.NewPCG(w.seed, w.random.Uint64())), left: -1}
}

// process runs a controller until the world ends or it dies; elected ones take
// part in the election.
func (w *world) process(c *conn, elected string) (ended <-chan struct{}) {
	ctx, die := context.WithCancel(w.ctx)
	c.die = die
	config := controller.Config{Client: c.client(), LeaveBinding: !w.bind, LeaveNodes: true, Log: logger()}
	over := make(chan struct{})
	w.group.Go(func() {
		defer close(over)
		defer die()
		var err error
		if elected == "" {
			err = controller.Run(ctx, config)
		} else {
			e := controller.Election{Identity: elected, Log: config.Log}
			config.Holds = e.Holds
			err = e.Lead(ctx, config.Client, func(ctx context.Context) error { return controller.Run(ctx, config) })
		}
		if err != nil && ctx.Err() == nil {
			w.Errorf("seed %d: the controller ended: %v", w.seed, err)
		}
	})
	return over
}

// calm says whether all nodes have one pod of the template, ready, and the
// status says so.
func (w *world) calm() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	ds := w.daemonSet()
	good := map[string]bool{}
	for _, o := range w.store["pods"] {
		p := o.(*corev1.Pod)
		if p.Spec.Containers[0].Image != ds.Spec.Template.Spec.Containers[0].Image || !ready(p) || p.DeletionTimestamp != nil {
			return false
		}
		good[target(p)] = true
	}
	n, s := int32(len(w.nodes)), ds.Status
	return len(good) == len(w.nodes) && len(w.store["pods"]) == len(w.nodes) && s.ObservedGeneration == ds.Generation &&
		s.UpdatedNumberScheduled == n && s.NumberAvailable == n && s.DesiredNumberScheduled == n
}

// settle waits until all is calm, for so long at most.
func (w *world) settle(most time.Duration) {
	w.Helper()
	for end := time.Now().Add(most); !w.calm(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			w.mu.Lock()
			defer w.mu.Unlock()
			text := ""
			for _, o := range w.store["pods"] {
				p := o.(*corev1.Pod)
				text += fmt.Sprintf("\n%s on %s, %s, ready %v, deleting %v", p.Name, target(p), p.Spec.Containers[0].Image, ready(p), p.DeletionTimestamp != nil)
			}
			w.Fatalf("seed %d: not calm after %v; %+v%s", w.seed, most, w.daemonSet().Status, text)
		}
	}
}

// count begins to count what is down.
func (w *world) count() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counting = true
}

// end ends all that runs.
func (w *world) end() {
	w.stop()
	w.mu.Lock()
	w.cut(func(*watch) bool { return true })
	w.mu.Unlock()
	w.group.Wait()
	if w.counting && w.worst == 0 && !w.Failed() {
		w.Errorf("seed %d: nothing was seen of an update", w.seed)
	}
}

func resourceOf(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.DecimalSI) }

// disturb does something to the cluster again and again, until the update of
// image is over.
func (w *world) disturb(image string, every time.Duration, do func()) {
	w.Helper()
	w.update(image)
	// The status of the revision before is calm, too: the change must be seen.
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end) && !w.calm(); {
		time.Sleep(time.Duration(w.random.Int64N(int64(every))))
		do()
	}
}

// Requests fail in all ways: refused before they were carried out, or carried
// out and answered with an error, or with nothing.
func TestStorms(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.storm, c.slow = 0.4, time.Second
		w.process(c, "")
		w.settle(30 * time.Minute)
		w.count()
		w.update("d:2")
		time.Sleep(time.Duration(w.random.IntN(20)) * time.Second)
		w.update("d:3")
		w.settle(30 * time.Minute)
	})
}

// Watches end, or keep their news back, or have nothing to resume from; lists
// are answered with a delay.
func TestWatchGaps(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.slow = 500 * time.Millisecond
		w.process(c, "")
		w.settle(10 * time.Minute)
		w.count()
		w.disturb("d:2", 5*time.Second, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			switch w.random.IntN(3) {
			case 0:
				w.cut(func(*watch) bool { return w.random.IntN(2) == 0 })
			case 1:
				w.forget()
				w.cut(func(*watch) bool { return true })
			case 2:
				for watch := range w.watches {
					if w.random.IntN(2) == 0 {
						watch.hold(time.Duration(w.random.IntN(20)) * time.Second)
					}
				}
			}
		})
		w.settle(10 * time.Minute)
	})
}

// The API server ends and starts again, in the middle of what it does.
func TestServerRestarts(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.slow = 300 * time.Millisecond
		w.process(c, "")
		w.settle(10 * time.Minute)
		w.count()
		w.disturb("d:2", 10*time.Second, func() {
			w.mu.Lock()
			w.out = true
			w.forget()
			w.cut(func(*watch) bool { return true })
			w.mu.Unlock()
			time.Sleep(time.Duration(w.random.IntN(8000)) * time.Millisecond)
			w.mu.Lock()
			w.out = false
			w.mu.Unlock()
		})
		w.settle(10 * time.Minute)
	})
}

// The controller dies before any write, and after it; the next one knows only
// what the API says.
func TestDiesBetweenAnyTwoWrites(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		deaths, late := 0, seed%2 == 0
		c := w.connect()
		for n := 0; ; n++ {
			c.left, c.late = n%5, late
			ended := w.process(c, "")
			// Alive, it finishes; the next round makes it work again.
			for end := time.Now().Add(10 * time.Minute); !w.calm() && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				select {
				case <-ended:
					deaths++
					c = w.connect()
					c.left, c.late = w.random.IntN(4), late
					ended = w.process(c, "")
				default:
				}
			}
			if !w.calm() {
				w.settle(0)
			}
			if n == 4 {
				break
			}
			w.count()
			c.kill()
			<-ended
			c = w.connect()
			w.update(fmt.Sprintf("d:%d", n+2))
		}
		if deaths < 10 {
			t.Errorf("seed %d: it died %d times only", seed, deaths)
		}
	})
}

// Two controllers; the one that works is cut off in the middle of an update,
// the other takes over, again and again.
func TestTwoControllers(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		both := []*conn{w.connect(), w.connect()}
		for i, c := range both {
			c.slow = 400 * time.Millisecond
			w.process(c, fmt.Sprintf("controller-%d", i))
		}
		w.settle(20 * time.Minute)
		w.count()
		for n := 2; n < 5; n++ {
			w.update(fmt.Sprintf("d:%d", n))
			time.Sleep(time.Duration(w.random.IntN(4000)) * time.Millisecond)
			// Both are cut off and come back, one after the other.
			for _, c := range both {
				c.set(func(c *conn) { c.cutOff = true })
				time.Sleep(time.Duration(5+w.random.IntN(40)) * time.Second)
				c.set(func(c *conn) { c.cutOff = false })
				time.Sleep(time.Duration(w.random.IntN(10)) * time.Second)
			}
			w.settle(20 * time.Minute)
		}
	})
}

// The clocks of the API server and of the agents step, by hours, against the
// controller's.
func TestClockSteps(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		w.process(w.connect(), "")
		w.settle(10 * time.Minute)
		w.count()
		w.disturb("d:2", 5*time.Second, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.skew = time.Duration(w.random.IntN(7200)-3600) * time.Second
		})
		w.settle(10 * time.Minute)
	})
}

// All of it at once.
func TestEverything(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		both := []*conn{w.connect(), w.connect()}
		ended := make([]<-chan struct{}, len(both))
		for i := range both {
			ended[i] = w.process(both[i], fmt.Sprintf("controller-%d", i))
		}
		w.settle(20 * time.Minute)
		w.count()
		started := len(both)
		w.disturb("d:2", 6*time.Second, func() {
			i := w.random.IntN(len(both))
			c := both[i]
			switch w.random.IntN(6) {
			case 0:
				w.mu.Lock()
				w.cut(func(*watch) bool { return w.random.IntN(2) == 0 })
				w.mu.Unlock()
			case 1:
				storm := float64(w.random.IntN(5)) / 10
				c.set(func(c *conn) { c.storm, c.slow = storm, time.Second })
			case 2:
				cutOff := w.random.IntN(3) == 0
				c.set(func(c *conn) { c.cutOff = cutOff })
			case 3:
				w.mu.Lock()
				w.skew = time.Duration(w.random.IntN(7200)-3600) * time.Second
				w.mu.Unlock()
			case 4:
				left, late := w.random.IntN(3), w.random.IntN(2) == 0
				c.set(func(c *conn) { c.left, c.late = left, late })
			case 5:
				w.mu.Lock()
				for watch := range w.watches {
					watch.hold(time.Duration(w.random.IntN(10)) * time.Second)
				}
				w.mu.Unlock()
			}
			for i := range both {
				select {
				case <-ended[i]:
					both[i] = w.connect()
					ended[i] = w.process(both[i], fmt.Sprintf("controller-%d", started))
					started++
				default:
				}
			}
		})
		for i, c := range both {
			select {
			case <-ended[i]:
				both[i] = w.connect()
				w.process(both[i], fmt.Sprintf("controller-%d", started))
				started++
			default:
				c.set(func(c *conn) { c.storm, c.cutOff, c.left = 0, false, -1 })
			}
		}
		w.settle(30 * time.Minute)
	})
}
