package faults

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/controller"
)

// world is a cluster with one DaemonSet, its agents, and the controllers.
type world struct {
	*testing.T
	*api
	seed   uint64
	random *rand.Rand
	nodes  map[string]*place
	surge  bool
	most   int // maxUnavailable or maxSurge, in nodes
	bind   bool
	// minReady is how long a pod must have been ready to be available.
	minReady time.Duration
	// nodeLoops: the controllers look after nodes, too, which may be silent for
	// grace.
	nodeLoops bool
	grace     time.Duration
	// counting: nodes that have had their pod must not lose it beyond most.
	counting bool
	// silent are nodes whose agents do nothing.
	silent map[string]bool
	// born is when pods were made, as the count of names then.
	born map[types.UID]int
	// beside are pods that were made where one had been available, up is when
	// pods were first seen to be available.
	beside map[types.UID]bool
	up     map[types.UID]time.Time

	ctx   context.Context
	stop  context.CancelFunc
	group sync.WaitGroup
	worst int
}

// place is a node as the checks see it.
type place struct {
	// joined is the count of names when it did.
	joined int
	// served: it has had an available pod, made since it joined.
	served bool
}

func newWorld(t *testing.T, seed uint64) *world {
	random := rand.New(rand.NewPCG(seed, 1))
	ctx, stop := context.WithCancel(context.Background())
	w := &world{
		T: t, api: newAPI(rand.New(rand.NewPCG(seed, 2))), seed: seed, random: random,
		surge: random.IntN(2) == 0, most: 1 + random.IntN(3), bind: random.IntN(2) == 0, ctx: ctx, stop: stop,
		minReady: time.Duration(rand.New(rand.NewPCG(seed, 3)).IntN(4)) * 7 * time.Second,
		nodes:    map[string]*place{}, born: map[types.UID]int{}, beside: map[types.UID]bool{}, up: map[types.UID]time.Time{}, silent: map[string]bool{}, grace: 1000 * time.Hour,
	}
	w.plain = random.IntN(4) == 0
	t.Cleanup(w.end)
	w.api.seen = w.see
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range 6 + random.IntN(6) {
		w.join(fmt.Sprintf("n%02d", i))
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
			MinReadySeconds:      int32(w.minReady / time.Second),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: match},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "d:1"}}},
			},
		},
	})
	return w
}

// soon has pods be available as soon as they are ready: where clocks step, no
// time of the others says how long that is.
func (w *world) soon() {
	w.minReady = 0
	w.daemonSet().Spec.MinReadySeconds = 0
}

// join makes a node; the lock is held.
func (w *world) join(name string) {
	w.add("nodes", &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{corev1.ResourcePods: *resourceOf(110)},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	})
	w.nodes[name] = &place{joined: w.names}
	// What was left there by an earlier one of its name.
	for _, o := range w.store["pods"] {
		if p := o.(*corev1.Pod); target(p) == name {
			// It was made as the budget allowed before the node came back.
			delete(w.beside, p.UID)
			w.serve(p)
		}
	}
}

// leave takes a node away, as a machine that is scrapped; the lock is held.
func (w *world) leave(name string) {
	delete(w.nodes, name)
	w.commit("nodes", "DELETED", w.store["nodes"]["/"+name].DeepCopyObject().(object))
}

// anyNode is one of them by chance; the lock is held.
func (w *world) anyNode() string {
	names := slices.Sorted(maps.Keys(w.nodes))
	return names[w.random.IntN(len(names))]
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
	if c.resource == "nodes" || c.resource == "pods" {
		logger().Info("seen", "what", c.kind, "kind", c.resource, "name", c.object.GetName())
	}
	if c.resource != "pods" {
		return
	}
	pod := c.object.(*corev1.Pod)
	switch c.kind {
	case "ADDED":
		w.born[pod.UID] = w.names
		if n := w.nodes[target(pod)]; n != nil {
			w.beside[pod.UID] = n.served
		}
		w.serve(pod)
	case "MODIFIED":
		w.serve(pod)
	}
	on := map[string][]*corev1.Pod{}
	for _, o := range w.store["pods"] {
		p := o.(*corev1.Pod)
		// One that has ended is in nobody's way.
		if p.Labels["app"] == "d" && p.Status.Phase != corev1.PodFailed {
			on[target(p)] = append(on[target(p)], p)
		}
	}
	down, twice := 0, 0
	for _, node := range slices.Sorted(maps.Keys(w.nodes)) {
		live, up, both := w.judge(w.nodes[node], on[node])
		if both {
			twice++
		}
		if !up && w.nodes[node].served {
			down++
		}
		if live > 1 && !w.surge || live > 2 || len(on[node]) > 1 && !w.surge {
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

// judge counts the pods of a node that stay, and says whether one is available
// and whether another was made beside one that was.
func (w *world) judge(n *place, pods []*corev1.Pod) (live int, up, twice bool) {
	for _, p := range pods {
		if p.DeletionTimestamp != nil {
			continue
		}
		live++
		twice = twice || w.beside[p.UID]
		if !w.available(p) {
			continue
		}
		if up = true; w.up[p.UID].IsZero() {
			w.up[p.UID] = time.Now()
		}
		// Not at once: what the controller decided a moment before is on its way.
		n.served = n.served || w.born[p.UID] > n.joined && time.Since(w.up[p.UID]) > onItsWay
	}
	return live, up, twice && live > 1
}

// onItsWay is how long a write of the controller may be on its way.
const onItsWay = 2 * time.Second

// available is as the controller counts, by times that are cut to seconds.
func (w *world) available(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodFailed {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return w.minReady == 0 || !w.now().Before(c.LastTransitionTime.Add(w.minReady))
		}
	}
	return false
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
			// Where the node is gone, so is its agent.
			acts := there && now.UID == pod.UID && w.nodes[target(now)] != nil && !w.silent[target(now)]
			if acts && w.ctx.Err() == nil {
				f(now.DeepCopy())
			}
		})
	}
	switch {
	case pod.DeletionTimestamp != nil:
		then(func(p *corev1.Pod) { w.commit("pods", "DELETED", p) })
	case pod.Spec.NodeName == "":
		then(func(p *corev1.Pod) {
			if p.Spec.NodeName != "" {
				return
			}
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
	config := controller.Config{LeaveBinding: !w.bind, LeaveNodes: !w.nodeLoops, NodeGrace: w.grace, Log: logger()}
	c.identity = elected
	over := make(chan struct{})
	w.group.Go(func() {
		defer close(over)
		defer die()
		var err error
		if elected == "" {
			config.Client = kubernetes.NewForConfigOrDie(c.config())
			err = controller.Run(ctx, config)
		} else {
			e := controller.Election{Identity: elected, Log: config.Log}
			config.Client = kubernetes.NewForConfigOrDie(e.Fence(c.config()))
			err = e.Lead(ctx, kubernetes.NewForConfigOrDie(c.config()), func(ctx context.Context) error { return controller.Run(ctx, config) })
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
	good, all := map[string]bool{}, 0
	for _, o := range w.store["pods"] {
		p := o.(*corev1.Pod)
		if p.Labels["app"] != "d" {
			continue
		}
		all++
		if p.Spec.Containers[0].Image != ds.Spec.Template.Spec.Containers[0].Image || !ready(p) || p.DeletionTimestamp != nil {
			return false
		}
		good[target(p)] = true
	}
	n, s := int32(len(w.nodes)), ds.Status
	return len(good) == len(w.nodes) && all == len(w.nodes) && s.ObservedGeneration == ds.Generation &&
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
	for _, n := range w.nodes {
		n.served = true
	}
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
