package apiserver

import (
	"context"
	"errors"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/operation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	registry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
	registrypod "k8s.io/kubernetes/pkg/registry/core/pod"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
)

// podREST are the pods; it tells their storage of a deletion what it needs to
// begin with the pod as the watch cache has it.
type podREST struct {
	*podstore.REST
	// ended takes out pods that have ended.
	ended *registry.Store
}

func newPodREST(pods *podstore.REST) podREST {
	ended := *pods.Store
	ended.DeleteStrategy = atOnce{pods.DeleteStrategy}
	return podREST{pods, &ended}
}

// atOnce is a strategy that gives what is deleted no time.
type atOnce struct{ rest.RESTDeleteStrategy }

// Delete is upstream's, but for what a node says of a pod that was being deleted
// and has ended there. Upstream writes first that the pod has no time left, and
// then takes it out; here it is taken out, if it is still the pod that the watch
// cache has. Who watches it is told of its end once, not twice.
func (r podREST) Delete(
	ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions,
) (runtime.Object, bool, error) {
	deepen()
	if saysEnded(options) {
		taken, now, err := r.ended.Delete(context.WithValue(ctx, deletion{}, &deleting{options: options, ended: true}), name, validate, options)
		if err == nil || apierrors.IsNotFound(err) {
			return taken, now, err
		}
	}
	return r.REST.Delete(context.WithValue(ctx, deletion{}, &deleting{options: options}), name, validate, options)
}

// saysEnded says whether options are those of a node whose pod has ended.
func saysEnded(o *metav1.DeleteOptions) bool {
	if o == nil || len(o.DryRun) > 0 || o.PropagationPolicy != nil {
		return false
	}
	//lint:ignore SA1019 who still sets it means it
	if o.OrphanDependents != nil {
		return false
	}
	return o.GracePeriodSeconds != nil && *o.GracePeriodSeconds == 0 && o.Preconditions != nil && o.Preconditions.UID != nil
}

// deletion is the key of a pod's deletion in its context.
type deletion struct{}

type deleting struct {
	options *metav1.DeleteOptions
	// ended: only a pod that has ended is to be taken out, as it was seen.
	ended bool
	seen  *api.Pod
}

// uid is empty if the options do not say it: the pod may be another than the
// cache has.
func (d *deleting) uid() types.UID {
	if p := d.options.Preconditions; p != nil && p.UID != nil {
		return *p.UID
	}
	return ""
}

// now says whether the pod has no time left.
func (d *deleting) now() bool {
	return d.options.GracePeriodSeconds != nil && *d.options.GracePeriodSeconds == 0
}

func deletionOf(ctx context.Context) *deleting {
	d, _ := ctx.Value(deletion{}).(*deleting)
	if d == nil || d.options == nil {
		return nil
	}
	return d
}

// podStatusREST has the strategic merge patches of pods' statuses made on pods
// without the greater part of their specs. Each node sends such a patch with
// each change of a pod. To carry it out the pod becomes a map of JSON and a pod
// again, and what has become of the spec is thrown away: the status' strategy
// puts the old one in its place.
type podStatusREST struct {
	*podstore.StatusREST
	store *registry.Store
}

func newPodStatusREST(pods podstore.PodStorage) podStatusREST {
	store := *pods.Pod.Store
	store.UpdateStrategy = statusStrategy{registrypod.StatusStrategy, registrypod.StatusStrategy}
	store.ResetFieldsStrategy = registrypod.StatusStrategy
	return podStatusREST{pods.Status, &store}
}

// Update is upstream's.
func (r podStatusREST) Update(
	ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions,
) (runtime.Object, bool, error) {
	deepen()
	if isStatusPatch(ctx) {
		info = specAside{info}
	}
	return r.store.Update(ctx, name, info, create, update, false, options)
}

// statusStrategy is upstream's, which gives the new pod the spec of the old one.
// What is declared of specs is then not judged again: upstream would copy both
// to find them the same.
type statusStrategy struct {
	rest.RESTUpdateStrategy
	declared rest.DeclarativeValidationStrategy
}

// DeclarativeValidationConfig is upstream's.
func (s statusStrategy) DeclarativeValidationConfig(ctx context.Context, obj, old runtime.Object) rest.DeclarativeValidationConfig {
	return s.declared.DeclarativeValidationConfig(ctx, obj, old)
}

// ValidateDeclaratively is upstream's, of pods without the lists of their specs.
func (s statusStrategy) ValidateDeclaratively(
	ctx context.Context, obj, old runtime.Object, found field.ErrorList, operation operation.Type, config rest.DeclarativeValidationConfig,
) field.ErrorList {
	return s.declared.ValidateDeclaratively(ctx, bare(obj), bare(old), found, operation, config)
}

// bare is a pod without the lists of its spec, or another object as it is.
func bare(obj runtime.Object) runtime.Object {
	pod, ok := obj.(*api.Pod)
	if !ok {
		return obj
	}
	out := *pod
	s := &out.Spec
	s.Volumes, s.InitContainers, s.Containers, s.EphemeralContainers = nil, nil, nil, nil
	s.Affinity, s.Tolerations, s.NodeSelector, s.TopologySpreadConstraints = nil, nil, nil, nil
	return &out
}

// statusPatch is the key, in a context, that says that the request is a
// strategic merge patch of a pod's status.
type statusPatch struct{}

func isStatusPatch(ctx context.Context) bool { return ctx.Value(statusPatch{}) != nil }

// tellStatusPatches marks such requests: of other kinds of patches some may test
// what the spec is.
func tellStatusPatches(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch && r.Header.Get("Content-Type") == string(types.StrategicMergePatchType) {
			info, ok := request.RequestInfoFrom(r.Context())
			if ok && info.APIGroup == "" && info.Resource == "pods" && info.Subresource == "status" {
				r = r.WithContext(context.WithValue(r.Context(), statusPatch{}, true))
			}
		}
		next.ServeHTTP(w, r)
	})
}

// specAside makes an object from one without the lists of its spec.
type specAside struct{ rest.UpdatedObjectInfo }

// UpdatedObject returns the changed pod with the spec of old. What remains of
// the spec is what admission asks for, such as the node.
func (i specAside) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	pod, ok := old.(*api.Pod)
	if !ok {
		return i.UpdatedObjectInfo.UpdatedObject(ctx, old)
	}
	obj, err := i.UpdatedObjectInfo.UpdatedObject(ctx, bare(pod))
	if made, ok := obj.(*api.Pod); ok && err == nil {
		made.Spec = pod.Spec
	}
	return obj, err
}

// podStorage are the pods behind their watch cache.
type podStorage struct {
	storage.Interface
	// below is the store without the cache.
	below storage.Interface
	parts *podParts
}

// Get reads a pod that is about to be deleted from the watch cache, if it has the
// one that is meant: all that is decided by what is read here is decided again
// by what is written.
func (s podStorage) Get(ctx context.Context, key string, options storage.GetOptions, destination runtime.Object) error {
	d := deletionOf(ctx)
	if d != nil && d.uid() != "" && options.ResourceVersion == "" {
		if pod, ok := destination.(*api.Pod); ok && s.cached(ctx, key, pod) && pod.UID == d.uid() {
			seen := *pod
			d.seen = &seen
		}
	}
	switch {
	case d != nil && d.ended && (d.seen == nil || d.seen.DeletionTimestamp == nil || len(d.seen.Finalizers) > 0):
		return errNotEnding
	case d != nil && d.seen != nil:
		return nil
	}
	return s.Interface.Get(ctx, key, options, destination)
}

// errNotEnding: the pod is not known to be one that is only to be taken out.
var errNotEnding = errors.New("the pod is not being deleted, or not known to be")

// Delete takes out a pod that has ended as it was seen, and no other: what has
// been written to it since, such as a finalizer, may be a reason not to.
func (s podStorage) Delete(
	ctx context.Context, key string, out runtime.Object, preconditions *storage.Preconditions,
	validate storage.ValidateObjectFunc, known runtime.Object, options storage.DeleteOptions,
) error {
	if d := deletionOf(ctx); d != nil && d.ended && d.seen != nil {
		uid, version := d.seen.UID, d.seen.ResourceVersion
		return s.below.Delete(ctx, key, out, &storage.Preconditions{UID: &uid, ResourceVersion: &version}, validate, d.seen, options)
	}
	return s.Interface.Delete(ctx, key, out, preconditions, validate, known, options)
}

// cached reads into pod what the watch cache has, of which the outermost is a copy.
func (s podStorage) cached(ctx context.Context, key string, pod *api.Pod) bool {
	err := s.Interface.Get(ctx, key, storage.GetOptions{ResourceVersion: "0", IgnoreNotFound: true}, pod)
	return err == nil && pod.Name != ""
}

// GuaranteedUpdate begins with the pod as the watch cache has it, as the cache
// itself does, which makes a deep copy of it before. What a deletion or a patch
// of the status writes to a pod is the pod's own metadata, so there the copy is
// of the outermost only. A pod that is deleted now is not written: upstream
// reads it from the store before it believes so, so that comes first.
func (s podStorage) GuaranteedUpdate(
	ctx context.Context, key string, destination runtime.Object, ignoreNotFound bool,
	preconditions *storage.Preconditions, update storage.UpdateFunc, known runtime.Object,
) error {
	d := deletionOf(ctx)
	if d != nil && d.now() {
		return s.below.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, update, nil)
	}
	if d != nil || isStatusPatch(ctx) {
		if pod := (&api.Pod{}); s.cached(ctx, key, pod) {
			return s.below.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, update, pod)
		}
	}
	return s.Interface.GuaranteedUpdate(ctx, key, destination, ignoreNotFound, preconditions, update, known)
}
