package controller

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	nodelisters "k8s.io/client-go/listers/node/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"legion.dev/legion/internal/daemonset"
	"legion.dev/legion/internal/placement"
)

// daemons is the loop of all DaemonSets. One goroutine owns its state; writes
// to the API run in others and come back as items of the same queue.
type daemons struct {
	client kubernetes.Interface
	log    *slog.Logger
	events record.EventRecorder
	bind   bool
	// updatesOnly: all but updates is left to the cluster's own controller.
	updatesOnly bool
	dsLister    appslisters.DaemonSetLister
	revisions   appslisters.ControllerRevisionLister
	nodes       corelisters.NodeLister
	classes     nodelisters.RuntimeClassLister
	pods        cache.Indexer

	queue workqueue.TypedDelayingInterface[item]
	gate  *gate

	sets map[types.NamespacedName]*set
	// cramped are the sets that wait for room on a node.
	cramped map[string]map[*set]bool
	// assumed is what pods take that are being made, by node.
	assumed map[string]map[*set]placement.Use
	// claims are the pods that are being adopted or released.
	claims map[types.UID]bool
}

// item is one thing to look at. Equal items are looked at once.
type item struct {
	kind kind
	set  types.NamespacedName // a DaemonSet, or for orphan a pod
	node string
	done *done
}

type kind int

const (
	setChanged      kind = iota // the DaemonSet
	revisionChanged             // one of its revisions
	revisionMade                // one that is new
	pairChanged                 // its pods on one node
	nodeChanged                 // a node
	roomChanged                 // what is taken on a node
	classChanged                // a RuntimeClass, whose name is in node
	timeCame                    // a time that the DaemonSet's update waits for
	orphanSeen                  // a pod without a controller
	mayCreate                   // a pause after failed creates is over
	wrote                       // a write ended
)

// done is the end of a write: what to do with it in the loop.
type done struct{ apply func() }

func newDaemons(cfg Config, f informers.SharedInformerFactory, events record.EventRecorder) (*daemons, error) {
	c := &daemons{
		client:      cfg.Client,
		log:         cfg.Log,
		events:      events,
		bind:        !cfg.LeaveBinding,
		updatesOnly: cfg.RolloutsOnly,
		dsLister:    f.Apps().V1().DaemonSets().Lister(),
		revisions:   f.Apps().V1().ControllerRevisions().Lister(),
		nodes:       f.Core().V1().Nodes().Lister(),
		classes:     f.Node().V1().RuntimeClasses().Lister(),
		pods:        f.Core().V1().Pods().Informer().GetIndexer(),
		queue:       workqueue.NewTypedDelayingQueue[item](),
		gate:        newGate(cfg.Writes),
		sets:        map[types.NamespacedName]*set{},
		cramped:     map[string]map[*set]bool{},
		assumed:     map[string]map[*set]placement.Use{},
		claims:      map[types.UID]bool{},
	}
	for _, h := range []struct {
		informer cache.SharedIndexInformer
		handler  cache.ResourceEventHandler
	}{
		{f.Apps().V1().DaemonSets().Informer(), each(func(_, ds *appsv1.DaemonSet) {
			c.queue.Add(item{kind: setChanged, set: nameOf(ds)})
		})},
		{f.Apps().V1().ControllerRevisions().Informer(), c.revisionHandler()},
		{f.Core().V1().Pods().Informer(), each(c.podSeen)},
		{f.Core().V1().Nodes().Informer(), each(func(old, node *corev1.Node) {
			if old != nil && sameForPlanning(old, node) {
				return
			}
			c.queue.Add(item{kind: nodeChanged, node: node.Name})
		})},
		{f.Node().V1().RuntimeClasses().Informer(), each(func(_, class *nodev1.RuntimeClass) {
			c.queue.Add(item{kind: classChanged, node: class.Name})
		})},
	} {
		if err := cfg.listening.to(h.informer, h.handler); err != nil {
			return nil, fmt.Errorf("cannot watch for DaemonSets: %w", err)
		}
	}
	return c, nil
}

// each makes a handler of one function; old is nil unless the object is
// known already and was updated.
func each[T any](f func(old, obj *T)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if o, ok := obj.(*T); ok {
				f(nil, o)
			}
		},
		UpdateFunc: func(old, obj any) {
			o, _ := old.(*T)
			if n, ok := obj.(*T); ok {
				f(o, n)
			}
		},
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			if o, ok := obj.(*T); ok {
				f(nil, o)
			}
		},
	}
}

func sameForPlanning(a, b *corev1.Node) bool {
	return a.UID == b.UID && equality.Semantic.DeepEqual(a.Labels, b.Labels) &&
		equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints) &&
		equality.Semantic.DeepEqual(a.Status.Allocatable, b.Status.Allocatable) &&
		equality.Semantic.DeepEqual(a.Status.RuntimeHandlers, b.Status.RuntimeHandlers) &&
		daemonset.NotReady(a) == daemonset.NotReady(b)
}

// podSeen queues what a pod's event touches: its node in its DaemonSet.
func (c *daemons) podSeen(old, pod *corev1.Pod) {
	for _, p := range []*corev1.Pod{old, pod} {
		if p == nil {
			continue
		}
		if owner := owningDaemonSet(p); owner != nil {
			set := types.NamespacedName{Namespace: p.Namespace, Name: owner.Name}
			c.queue.Add(item{kind: pairChanged, set: set, node: targetNode(p)})
		}
	}
	if controllerOf(pod) == nil && pod.DeletionTimestamp == nil && !c.updatesOnly {
		c.queue.Add(item{kind: orphanSeen, set: nameOf(pod)})
	}
	if pod.Spec.NodeName != "" && (old == nil || placement.Occupies(old) != placement.Occupies(pod)) {
		c.queue.Add(item{kind: roomChanged, node: pod.Spec.NodeName})
	}
}

// run is the loop.
func (c *daemons) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	defer c.gate.running.Wait()
	dirty := map[*set]bool{}
	for handled := 0; ; {
		it, quit := c.queue.Get()
		if quit {
			return
		}
		c.handle(ctx, it, dirty)
		c.queue.Done(it)
		// The budgeted steps and the status of a set are looked at once for
		// all events that came together.
		if handled++; c.queue.Len() > 0 && handled < 256 {
			continue
		}
		handled = 0
		for s := range dirty {
			delete(dirty, s)
			if c.sets[s.name] == s {
				c.settle(ctx, s)
			}
		}
	}
}

func (c *daemons) handle(ctx context.Context, it item, dirty map[*set]bool) {
	switch it.kind {
	case setChanged:
		c.look(ctx, it.set)
	case wrote:
		it.done.apply()
		if s := c.sets[it.set]; s != nil {
			dirty[s] = true
		}
		return
	case nodeChanged:
		for _, s := range c.sets {
			c.touch(ctx, s, it.node)
			c.readHistory(ctx, s)
			dirty[s] = true
		}
		return
	case roomChanged:
		for s := range c.cramped[it.node] {
			c.touch(ctx, s, it.node)
			dirty[s] = true
		}
		return
	case classChanged:
		for _, s := range c.sets {
			if class := s.ds.Spec.Template.Spec.RuntimeClassName; s.fleet != nil && class != nil && *class == it.node {
				c.rebuild(ctx, s)
				dirty[s] = true
			}
		}
		return
	case orphanSeen:
		c.orphan(ctx, it.set)
		return
	}
	s := c.sets[it.set]
	if s == nil {
		return
	}
	switch it.kind {
	case revisionMade:
		s.unread = true
		return
	case revisionChanged:
		c.prepare(ctx, s)
	case pairChanged:
		c.touch(ctx, s, it.node)
		c.readHistory(ctx, s)
	case mayCreate:
		c.pump(ctx, s)
	}
	dirty[s] = true
}

// write runs a write beside the loop; what it returns runs in the loop.
func (c *daemons) write(ctx context.Context, s *set, f func(ctx context.Context) func()) {
	c.tryWrite(ctx, s, func(ctx context.Context) (func(), error) { return f(ctx), nil })
}

// tryWrite is a write whose error says whether the server has too much to do.
func (c *daemons) tryWrite(ctx context.Context, s *set, f func(ctx context.Context) (func(), error)) {
	c.gate.do(ctx, func() bool {
		apply, err := f(ctx)
		if apply != nil {
			c.queue.Add(item{kind: wrote, set: s.name, done: &done{apply}})
		}
		return tooMuch(err)
	})
}

// look takes note of a DaemonSet that appeared, changed or went.
func (c *daemons) look(ctx context.Context, name types.NamespacedName) {
	s := c.sets[name]
	ds, err := c.dsLister.DaemonSets(name.Namespace).Get(name.Name)
	if err != nil || s != nil && s.ds.UID != ds.UID {
		if s != nil {
			c.forget(s)
		}
		if err != nil {
			return
		}
		s = nil
	}
	if s == nil {
		s = newSet(name, ds)
		c.sets[name] = s
	}
	before := s.ds
	s.ds = ds
	s.seen(ds)
	switch {
	case ds.DeletionTimestamp != nil:
		// Its pods and revisions go, or stay, by garbage collection.
		s.unplan()
	case selectsAll(ds):
		c.events.Event(ds, corev1.EventTypeWarning, "SelectingAll",
			"This daemon set is selecting all pods. A non-empty selector is required.")
		s.unplan()
	case c.updatesOnly && !daemonset.Drives(ds):
		c.leave(ctx, s, before)
	case s.hash == "" || !equality.Semantic.DeepEqual(before.Spec.Template, ds.Spec.Template) ||
		!equality.Semantic.DeepEqual(before.Status.CollisionCount, ds.Status.CollisionCount):
		// Nothing is planned until the template has its revision.
		s.hash = ""
		s.unplan()
		c.prepare(ctx, s)
	case before.Generation != ds.Generation, optionsChanged(before.Annotations, ds.Annotations):
		c.rebuild(ctx, s)
	}
}

func (c *daemons) forget(s *set) {
	delete(c.sets, s.name)
	for node := range s.unfit {
		c.roomFound(s, node)
	}
	for node := range s.flights {
		c.unassume(s, node)
	}
}

// rebuild plans all nodes anew, after a change of the DaemonSet itself.
func (c *daemons) rebuild(ctx context.Context, s *set) {
	policy, err := daemonset.Compile(s.ds, s.hash, c.setting())
	s.unplan()
	if err != nil {
		c.events.Event(s.ds, corev1.EventTypeWarning, "InvalidSpec", err.Error())
		return
	}
	s.policy, s.fleet = policy, daemonset.NewFleet(policy)
	s.fleet.Inherit(s.former)
	s.former = nil
	s.fleet.Begin(daemonset.CurrentSince(s.history.Current))
	s.failures = map[string]daemonset.Failures{}
	// Of which revision a pod may be made is known once all nodes are.
	s.rebuilding = true
	defer func() {
		s.rebuilding = false
		c.pump(ctx, s)
	}()
	touched := map[string]bool{}
	nodes, _ := c.nodes.List(labels.Everything())
	for _, node := range nodes {
		touched[node.Name] = true
		c.touch(ctx, s, node.Name)
	}
	for _, pod := range c.indexed(byOwner, string(s.ds.UID)) {
		if node := targetNode(pod); !touched[node] {
			touched[node] = true
			c.touch(ctx, s, node)
		}
	}
}

func (c *daemons) indexed(index, value string) []*corev1.Pod {
	objs, err := c.pods.ByIndex(index, value)
	if err != nil {
		panic(err) // the index is added in Run
	}
	pods := make([]*corev1.Pod, 0, len(objs))
	for _, o := range objs {
		pods = append(pods, o.(*corev1.Pod))
	}
	return pods
}

// caughtUp says whether the pod cache is at least as new as a write.
func (c *daemons) caughtUp(version string) bool {
	n, err := resourceversion.CompareResourceVersion(c.pods.LastStoreSyncResourceVersion(), version)
	return err == nil && n >= 0
}

func (c *daemons) after(d time.Duration, it item) { c.queue.AddAfter(it, max(d, 0)) }

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func controllerOf(o metav1.Object) *metav1.OwnerReference { return metav1.GetControllerOfNoCopy(o) }

// owningDaemonSet returns the owner reference of the DaemonSet that controls o.
func owningDaemonSet(o metav1.Object) *metav1.OwnerReference {
	ref := controllerOf(o)
	if ref == nil || ref.Kind != daemonSetKind.Kind || ref.APIVersion != daemonSetKind.GroupVersion().String() {
		return nil
	}
	return ref
}

func targetNode(pod *corev1.Pod) string { return daemonset.TargetNode(pod) }

func pairIndex(uid types.UID, node string) string { return string(uid) + "/" + node }
