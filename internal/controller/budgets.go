package controller

import (
	"context"
	"fmt"
	"sync"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/disruption"
)

// budgets has upstream's controller say in the status of each
// PodDisruptionBudget how many pods may be evicted. It is not begun before there
// is a budget: it looks at each event of each pod.
type budgets struct {
	cfg   Config
	all   informers.SharedInformerFactory
	exist chan struct{}
}

func newBudgets(cfg Config, all informers.SharedInformerFactory) (*budgets, error) {
	b := &budgets{cfg, all, make(chan struct{})}
	first := sync.OnceFunc(func() { close(b.exist) })
	err := cfg.listening.to(all.Policy().V1().PodDisruptionBudgets().Informer(), cache.ResourceEventHandlerFuncs{AddFunc: func(any) { first() }})
	if err != nil {
		return nil, fmt.Errorf("cannot follow PodDisruptionBudgets: %w", err)
	}
	return b, nil
}

func (b *budgets) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-b.exist:
	}
	heard := &listening{}
	defer heard.end()
	pods, kept := b.all.Core().V1().Pods(), b.all.Policy().V1().PodDisruptionBudgets()
	none := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	discovery := b.cfg.Client.Discovery()
	disruption.NewDisruptionController(ctx,
		source[corelisters.PodLister]{heardInformer{pods.Informer(), heard}, pods.Lister()},
		source[policylisters.PodDisruptionBudgetLister]{heardInformer{kept.Informer(), heard}, kept.Lister()},
		source[corelisters.ReplicationControllerLister]{notServed{}, corelisters.NewReplicationControllerLister(none)},
		source[appslisters.ReplicaSetLister]{notServed{}, appslisters.NewReplicaSetLister(none)},
		source[appslisters.DeploymentLister]{notServed{}, appslisters.NewDeploymentLister(none)},
		source[appslisters.StatefulSetLister]{notServed{}, appslisters.NewStatefulSetLister(none)},
		wholePods{b.cfg.Client},
		restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery)),
		noScales{}, discovery,
	).Run(ctx, 1)
}

// source is where upstream's controller finds the objects of one kind.
type source[L any] struct {
	informer cache.SharedIndexInformer
	lister   L
}

func (s source[L]) Informer() cache.SharedIndexInformer { return s.informer }
func (s source[L]) Lister() L                           { return s.lister }

// heardInformer notes who listens: the informer outlives them.
type heardInformer struct {
	cache.SharedIndexInformer
	heard *listening
}

func (i heardInformer) AddEventHandler(handler cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return nil, i.heard.to(i.SharedIndexInformer, handler)
}

// notServed is the informer of a kind that the server does not have.
type notServed struct{ cache.SharedIndexInformer }

func (notServed) HasSynced() bool { return true }

// noScales answers for the controllers of pods that the server has: no kind of
// them has the subresource scale, DaemonSets neither.
type noScales struct{ scale.ScaleInterface }

func (s noScales) Scales(string) scale.ScaleInterface { return s }

func (noScales) Get(_ context.Context, resource schema.GroupResource, name string, _ metav1.GetOptions) (*autoscalingv1.Scale, error) {
	return nil, apierrors.NewNotFound(resource, name)
}

// wholePods is a client for who writes the status of pods from an informer that
// holds them in part: what is written is the whole pod with those conditions.
type wholePods struct{ kubernetes.Interface }

func (c wholePods) CoreV1() typedcorev1.CoreV1Interface { return wholePodsCore{c.Interface.CoreV1()} }

type wholePodsCore struct{ typedcorev1.CoreV1Interface }

func (c wholePodsCore) Pods(namespace string) typedcorev1.PodInterface {
	return wholePodsIn{c.CoreV1Interface.Pods(namespace)}
}

type wholePodsIn struct{ typedcorev1.PodInterface }

func (p wholePodsIn) UpdateStatus(ctx context.Context, part *corev1.Pod, options metav1.UpdateOptions) (*corev1.Pod, error) {
	whole, err := p.Get(ctx, part.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	if whole.UID != part.UID || whole.ResourceVersion != part.ResourceVersion {
		return nil, apierrors.NewConflict(corev1.Resource("pods"), part.Name, fmt.Errorf("it is at %s, not at %s", whole.ResourceVersion, part.ResourceVersion))
	}
	whole.Status.Conditions = part.Status.Conditions
	return p.PodInterface.UpdateStatus(ctx, whole, options)
}
