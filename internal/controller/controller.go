// Package controller runs the loops of the control plane that are Legion's
// own: DaemonSets, the readiness of nodes, and the removal of pods whose node
// is gone. What they do to a DaemonSet is decided by the pure packages
// daemonset and placement; this package watches, writes and waits.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/tainteviction"

	"legion.dev/legion/internal/daemonset"
)

// Config says what Run works on. Only Client is required.
type Config struct {
	// Client reaches the API server. On Legion's own server it should have no
	// rate limit (rest.Config.QPS = -1).
	Client kubernetes.Interface
	// Informers, if set, are used in place of the controllers' own. They go on
	// when Run returns, and their objects have at least what slim leaves.
	Informers informers.SharedInformerFactory
	// NodeGrace is how long a node's Lease may go without renewal before its
	// Ready condition becomes Unknown. Default 40 s.
	NodeGrace time.Duration
	// Refused, if set, is when the server last refused to note anything, since
	// its disk was full: until then the silence of nodes says nothing.
	Refused func() time.Time
	// LeaveBinding leaves the choice of spec.nodeName to the cluster's
	// scheduler, and with it the question whether a pod fits.
	LeaveBinding bool
	// LeaveNodes leaves nodes, evictions and their budgets, pods of gone nodes
	// and pods that name no node to the cluster's own controllers.
	LeaveNodes bool
	// LeaveDaemonSets leaves DaemonSets to a controller elsewhere.
	LeaveDaemonSets bool
	// RolloutsOnly leaves to the cluster's own controller all of a DaemonSet but
	// its updates: where the strategy is OnDelete and there is an annotation of
	// rollout.legion.dev, outdated pods are deleted in its order and at its pace.
	// It implies LeaveBinding and LeaveNodes.
	RolloutsOnly bool
	// Ready, if set, is called once the caches are filled.
	Ready func()
	// Writes is the most writes that are under way at a time; how many are is
	// found out from how the server does. Default 256.
	Writes int
	// Log takes what goes wrong. Default: slog.Default().
	Log *slog.Logger

	listening *listening
}

// listening are the handlers of one Run: shared informers outlive it.
type listening struct{ ends []func() error }

func (l *listening) to(informer cache.SharedIndexInformer, handler cache.ResourceEventHandler) error {
	registered, err := informer.AddEventHandler(handler)
	if l != nil && err == nil {
		l.ends = append(l.ends, func() error { return informer.RemoveEventHandler(registered) })
	}
	return err
}

func (l *listening) end() {
	for _, end := range l.ends {
		_ = end() // an informer that has ended has no handlers
	}
}

func (c Config) completed() (Config, error) {
	if c.Client == nil {
		return c, errors.New("cannot run the controllers: Config.Client is not set")
	}
	if c.NodeGrace <= 0 {
		c.NodeGrace = 40 * time.Second
	}
	if c.Writes <= 0 {
		c.Writes = 256
	}
	if c.RolloutsOnly {
		c.LeaveBinding, c.LeaveNodes = true, true
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, nil
}

// Run runs the controllers until ctx ends, and returns when their last write has
// ended. It returns an error only if they cannot start.
func Run(ctx context.Context, config Config) error {
	cfg, err := config.completed()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	all, leases := cfg.Informers, cfg.Informers
	if all == nil {
		all = informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(slim), informers.WithTweakListOptions(latest))
		leases = informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0,
			informers.WithNamespace(corev1.NamespaceNodeLease), informers.WithTransform(slim))
		defer all.Shutdown()
		defer leases.Shutdown()
	}
	// Before the informers are waited for.
	defer cancel()
	cfg.listening = &listening{}
	defer cfg.listening.end()
	events := newTeller(eventsAPI{cfg.Client}, cfg.Log)
	recorder := events.as

	if err := addIndexers(all.Core().V1().Pods().Informer()); err != nil {
		return fmt.Errorf("cannot index pods: %w", err)
	}
	loops := []func(context.Context){events.run}
	if !cfg.LeaveDaemonSets {
		d, err := newDaemons(cfg, all, recorder("daemonset-controller"))
		if err != nil {
			return err
		}
		loops = append(loops, d.run)
	}
	if !cfg.LeaveBinding && !cfg.LeaveNodes {
		u, err := newUnbound(cfg, all, recorder("legion"))
		if err != nil {
			return err
		}
		loops = append(loops, u.run)
	}
	if !cfg.LeaveNodes {
		n, err := newNodes(cfg, all, leases, recorder("node-controller"))
		if err != nil {
			return err
		}
		g, err := newOrphans(cfg, all)
		if err != nil {
			return err
		}
		taints, err := tainteviction.New(ctx, cfg.Client, all.Core().V1().Pods(), all.Core().V1().Nodes(), "taint-eviction-controller")
		if err != nil {
			return fmt.Errorf("cannot set up eviction by taints: %w", err)
		}
		b, err := newBudgets(cfg, all)
		if err != nil {
			return err
		}
		loops = append(loops, n.run, g.run, taints.Run, b.run)
	}

	all.Start(ctx.Done())
	leases.Start(ctx.Done())
	for _, f := range []informers.SharedInformerFactory{all, leases} {
		for t, ok := range f.WaitForCacheSync(ctx.Done()) {
			if !ok && ctx.Err() == nil {
				return fmt.Errorf("cannot read %v from the API server", t)
			}
		}
	}
	if cfg.Ready != nil && ctx.Err() == nil {
		cfg.Ready()
	}
	var wg sync.WaitGroup
	for _, loop := range loops {
		wg.Go(func() { loop(ctx) })
	}
	<-ctx.Done()
	cancel()
	wg.Wait()
	return nil
}

// latest has lists read what is true at the moment. Otherwise an API server that
// is behind may answer from the past: to a controller that begins, pods that
// the one before it has deleted would still be there, and use no budget.
func latest(o *metav1.ListOptions) {
	if o.ResourceVersion == "0" {
		o.ResourceVersion = ""
	}
}

// indexing is held while indexes are added: parts of a server's controllers
// begin at the same time, with the same informers.
var indexing sync.Mutex

// addIndexers adds the pod indexes that are not there yet: shared informers may
// have them from an earlier Run.
func addIndexers(pods cache.SharedIndexInformer) error {
	indexing.Lock()
	defer indexing.Unlock()
	missing := cache.Indexers{}
	for name, index := range podIndexers {
		if _, ok := pods.GetIndexer().GetIndexers()[name]; !ok {
			missing[name] = index
		}
	}
	return pods.AddIndexers(missing)
}

// slim drops from cached objects what no loop here reads, so that a large
// fleet stays cheap to hold. The lists of an object may be those of the server's
// own caches, so none is written to.
func slim(obj any) (any, error) {
	if m, err := meta.Accessor(obj); err == nil {
		m.SetManagedFields(nil)
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		o.Spec.Volumes = nil
		for _, cs := range []*[]corev1.Container{&o.Spec.Containers, &o.Spec.InitContainers} {
			*cs = slices.Clone(*cs)
			for i := range *cs {
				c := &(*cs)[i]
				*c = corev1.Container{Name: c.Name, Ports: c.Ports, Resources: c.Resources, RestartPolicy: c.RestartPolicy}
			}
		}
		daemonset.SlimStatus(o)
		o.Annotations = nil
	case *corev1.Node:
		o.Status.Images, o.Annotations = nil, nil
	case *coordinationv1.Lease:
		o.Labels, o.Annotations = nil, nil
	}
	return obj, nil
}

// Names of the pod indexes.
const (
	byPair   = "legion-daemonset-node" // owner's UID / target node
	byOwner  = "legion-daemonset"      // owner's UID
	byOrphan = "legion-orphan"         // of pods without a controller: namespace, and namespace / target node
	byNode   = "spec.nodeName"         // the name by which upstream's eviction looks it up
)

var podIndexers = cache.Indexers{
	byPair: func(obj any) ([]string, error) {
		if pod, ok := obj.(*corev1.Pod); ok {
			if owner := owningDaemonSet(pod); owner != nil {
				return []string{pairIndex(owner.UID, targetNode(pod))}, nil
			}
		}
		return nil, nil
	},
	byOwner: func(obj any) ([]string, error) {
		if pod, ok := obj.(*corev1.Pod); ok {
			if owner := owningDaemonSet(pod); owner != nil {
				return []string{string(owner.UID)}, nil
			}
		}
		return nil, nil
	},
	byOrphan: func(obj any) ([]string, error) {
		if pod, ok := obj.(*corev1.Pod); ok && controllerOf(pod) == nil {
			return []string{pod.Namespace, pod.Namespace + "/" + targetNode(pod)}, nil
		}
		return nil, nil
	},
	byNode: func(obj any) ([]string, error) {
		if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
			return []string{pod.Spec.NodeName}, nil
		}
		return nil, nil
	},
}

var daemonSetKind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")
