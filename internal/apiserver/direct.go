package apiserver

import (
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/client-go/kubernetes"
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/plugin/pkg/admission/serviceaccount"
)

// directTime bounds a write, as the API server bounds a request.
const directTime = 34 * time.Second

// direct is the way of the controllers inside this process to the registries:
// the client of which it is a part creates and deletes pods there, and watches
// pods, nodes and leases, without HTTP and TLS. Defaults, admission and
// validation are those of the API. What differs: nobody is asked whether it is
// allowed, since it is the server itself that asks, and no managed fields are
// kept until somebody applies to such a pod; Kubernetes treats it like one
// older than apply.
type direct struct {
	stores atomic.Pointer[stores]
	// writing is how many writes are under way.
	writing atomic.Int32
}

// stores are the registries, and what admits objects to them.
type stores struct {
	pods      podREST
	nodes     rest.Watcher
	leases    *leaseREST
	admission admission.Interface
}

// client returns a client that takes the direct way once there is one, until
// then that of base.
func (d *direct) client(base kubernetes.Interface) kubernetes.Interface {
	return &directClient{base, d}
}

// Upstream asks such interfaces whether they are nil, hence the pointers.
type directClient struct {
	kubernetes.Interface
	direct *direct
}

func (c *directClient) CoreV1() typedcorev1.CoreV1Interface {
	if stores := c.direct.stores.Load(); stores != nil {
		return &directCore{c.Interface.CoreV1(), stores, &c.direct.writing}
	}
	return c.Interface.CoreV1()
}

func (c *directClient) CoordinationV1() typedcoordinationv1.CoordinationV1Interface {
	if stores := c.direct.stores.Load(); stores != nil && stores.leases != nil {
		return &directCoordination{c.Interface.CoordinationV1(), stores}
	}
	return c.Interface.CoordinationV1()
}

type directCore struct {
	typedcorev1.CoreV1Interface
	*stores
	writing *atomic.Int32
}

func (c *directCore) Pods(namespace string) typedcorev1.PodInterface {
	return &directPods{c.CoreV1Interface.Pods(namespace), namespace, c.pods, c.admission, c.writing}
}

func (c *directCore) Nodes() typedcorev1.NodeInterface {
	return &directNodes{c.CoreV1Interface.Nodes(), c.nodes}
}

type directNodes struct {
	typedcorev1.NodeInterface
	store rest.Watcher
}

func (n *directNodes) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return watchInside(inside(ctx, "watch", "", "nodes", ""), n.store, options, versioned(func() runtime.Object { return &corev1.Node{} }, copied))
}

type directCoordination struct {
	typedcoordinationv1.CoordinationV1Interface
	*stores
}

func (c *directCoordination) Leases(namespace string) typedcoordinationv1.LeaseInterface {
	return &directLeases{c.CoordinationV1Interface.Leases(namespace), namespace, c.leases}
}

type directLeases struct {
	typedcoordinationv1.LeaseInterface
	namespace string
	store     rest.Watcher
}

func (l *directLeases) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return watchInside(inside(ctx, "watch", l.namespace, "leases", ""), l.store, options, versioned(func() runtime.Object { return &coordinationv1.Lease{} }, copied))
}

// directPods are the pods of a namespace, or of all.
type directPods struct {
	typedcorev1.PodInterface
	namespace string
	store     podREST
	admission admission.Interface
	writing   *atomic.Int32
}

var (
	podKind     = corev1.SchemeGroupVersion.WithKind("Pod")
	podResource = corev1.SchemeGroupVersion.WithResource("pods")
	self        = &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	interfaces  = admission.NewObjectInterfacesFromScheme(legacyscheme.Scheme)
)

// inside is the context that a handler of the API would make.
func inside(ctx context.Context, verb, namespace, resource, name string) context.Context {
	ctx = request.WithNamespace(request.WithUser(ctx, self), namespace)
	return request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIVersion: "v1", Namespace: namespace, Resource: resource, Name: name,
	})
}

// Create does what the API's handler does with a pod that it has decoded
// (k8s.io/apiserver/pkg/endpoints/handlers/create.go).
func (p *directPods) Create(ctx context.Context, pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error) {
	if len(options.DryRun) > 0 || options.FieldManager != "" || options.FieldValidation != "" || p.namespace == "" {
		return p.PodInterface.Create(ctx, pod, options)
	}
	p.writing.Add(1)
	defer p.writing.Add(-1)
	versioned := pod.DeepCopy()
	legacyscheme.Scheme.Default(versioned)
	inner := &api.Pod{}
	if err := legacyscheme.Scheme.Convert(versioned, inner, nil); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("cannot convert the pod: %v", err))
	}
	rest.WipeObjectMetaSystemFields(inner)
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(p.namespace, inner); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(inside(ctx, "create", p.namespace, podResource.Resource, inner.Name), directTime)
	defer cancel()
	options.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	attributes := admission.NewAttributesRecord(inner, nil, podKind, p.namespace, inner.Name, podResource, "", admission.Create, &options, false, self)
	if mutating, ok := p.admission.(admission.MutationInterface); ok && mutating.Handles(admission.Create) {
		if err := mutating.Admit(ctx, attributes, interfaces); err != nil {
			return nil, err
		}
	}
	nameTokenVolume(inner, versioned.Spec.Volumes)
	made, err := p.store.Create(ctx, inner, rest.AdmissionToValidateObjectFunc(p.admission, attributes, interfaces), &options)
	if err != nil {
		return nil, err
	}
	out := &corev1.Pod{}
	if err := legacyscheme.Scheme.Convert(made, out, nil); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("cannot convert pod %s/%s, which was made: %w", p.namespace, inner.Name, err))
	}
	return out, nil
}

// nameTokenVolume gives the volume that admission has added for the token of
// the service account a name that comes of the pod's controller, and not of
// chance: then the specs of all its pods are the same and are held once.
func nameTokenVolume(pod *api.Pod, own []corev1.Volume) {
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil || len(pod.Spec.Volumes) != len(own)+1 {
		return
	}
	added := &pod.Spec.Volumes[len(own)]
	if !strings.HasPrefix(added.Name, serviceaccount.ServiceAccountVolumeName+"-") {
		return
	}
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(owner.UID))
	random, name := added.Name, serviceaccount.ServiceAccountVolumeName+"-"+rand.SafeEncodeString(strconv.FormatUint(hash.Sum64(), 10))[:5]
	for _, v := range own {
		if v.Name == name {
			return
		}
	}
	added.Name = name
	for _, all := range [][]api.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range all {
			for j := range all[i].VolumeMounts {
				if m := &all[i].VolumeMounts[j]; m.Name == random {
					m.Name = name
				}
			}
		}
	}
}

// Delete does what the API's handler does (handlers/delete.go).
func (p *directPods) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	if len(options.DryRun) > 0 || p.namespace == "" {
		return p.PodInterface.Delete(ctx, name, options)
	}
	p.writing.Add(1)
	defer p.writing.Add(-1)
	ctx, cancel := context.WithTimeout(inside(ctx, "delete", p.namespace, podResource.Resource, name), directTime)
	defer cancel()
	options.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("DeleteOptions"))
	_, _, err := p.store.Delete(ctx, name, func(ctx context.Context, old runtime.Object) error {
		return p.mayDelete(ctx, old, &options)
	}, &options)
	return err
}

// mayDelete asks admission. Upstream's AdmissionToValidateObjectDeleteFunc makes
// a deep copy of the pod before, lest somebody change it; admission of a
// deletion has nothing to change.
func (p *directPods) mayDelete(ctx context.Context, old runtime.Object, options *metav1.DeleteOptions) error {
	pod, err := meta.Accessor(old)
	if err != nil {
		return err
	}
	a := admission.NewAttributesRecord(nil, old, podKind, p.namespace, pod.GetName(), podResource, "", admission.Delete, options, false, self)
	if mutating, ok := p.admission.(admission.MutationInterface); ok && mutating.Handles(admission.Delete) {
		if err := mutating.Admit(ctx, a, interfaces); err != nil {
			return err
		}
	}
	if validating, ok := p.admission.(admission.ValidationInterface); ok && validating.Handles(admission.Delete) {
		return validating.Validate(ctx, a, interfaces)
	}
	return nil
}

// Watch follows the pods in the server's own watch cache.
func (p *directPods) Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	original := copied
	if store, ok := p.store.Storage.Storage.(podStorage); ok {
		original = store.parts.original
	}
	return watchInside(inside(ctx, "watch", p.namespace, podResource.Resource, ""), p.store, options,
		versioned(func() runtime.Object { return &(&keptVersionedPod{}).Pod }, original))
}

// watchInside follows a registry; turn makes what is watched of the API's version.
func watchInside(ctx context.Context, store rest.Watcher, options metav1.ListOptions, turn watch.FilterFunc) (watch.Interface, error) {
	inner := internalversion.ListOptions{}
	if err := internalversion.Convert_v1_ListOptions_To_internalversion_ListOptions(&options, &inner, nil); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	ctx, cancel := context.WithCancel(ctx)
	if options.TimeoutSeconds != nil {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*options.TimeoutSeconds)*time.Second)
	}
	source, err := store.Watch(ctx, &inner)
	if err != nil {
		cancel()
		return nil, err
	}
	// A watcher in the cache does not end with its context by itself.
	context.AfterFunc(ctx, source.Stop)
	return &directWatch{watch.Filter(source, turn), cancel}, nil
}

type directWatch struct {
	watch.Interface
	cancel context.CancelFunc
}

func (w *directWatch) Stop() {
	w.Interface.Stop()
	w.cancel()
}

// copied is an object of a watch that several watchers have, as one of the
// caller's own.
func copied(shared runtime.CacheableObject) runtime.Object { return shared.GetObject() }

// versioned turns an object of a watch into one that fresh makes, of the API's
// version. What the object points to may be shared with others, but for what
// informers change in theirs. Of an object in which the watch cache hides what
// it has original returns that, or a copy.
func versioned(fresh func() runtime.Object, original func(runtime.CacheableObject) runtime.Object) watch.FilterFunc {
	return func(e watch.Event) (watch.Event, bool) {
		obj := e.Object
		if shared, ok := obj.(runtime.CacheableObject); ok {
			obj = original(shared)
		}
		if _, ok := obj.(*metav1.Status); ok {
			return watch.Event{Type: e.Type, Object: obj}, true
		}
		out := fresh()
		if err := legacyscheme.Scheme.Convert(obj, out, nil); err != nil {
			return watch.Event{Type: watch.Error, Object: &apierrors.NewInternalError(err).ErrStatus}, true
		}
		detach(out)
		return watch.Event{Type: e.Type, Object: out}, true
	}
}

// detach copies the lists in whose elements [pool.slim] writes.
func detach(obj runtime.Object) {
	switch o := obj.(type) {
	case *corev1.Pod:
		s := &o.Status
		s.ContainerStatuses, s.InitContainerStatuses = slices.Clone(s.ContainerStatuses), slices.Clone(s.InitContainerStatuses)
		s.HostIPs, s.PodIPs = slices.Clone(s.HostIPs), slices.Clone(s.PodIPs)
	case *corev1.Node:
		o.Status.Conditions = slices.Clone(o.Status.Conditions)
	}
}
