package apiserver

import (
	"context"
	"reflect"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
	apiv1 "k8s.io/kubernetes/pkg/apis/core/v1"
)

// pool has the pods and nodes that this process holds share what they have in
// common. Each is decoded by itself, once for each version of it that a watch
// cache remembers and again for the informers, while of a DaemonSet's pods all
// but names, nodes and times is the same. What is shared is read by many and
// written by nobody, like all that a watch cache or an informer holds.
type pool struct {
	mu       sync.Mutex
	families map[family]*traits
	strings  map[string]string
	// Statuses are alike across families.
	podConditions  conditions[corev1.PodCondition]
	nodeConditions conditions[corev1.NodeCondition]
	resources      alike[corev1.ResourceList]
	handlers       alike[[]corev1.NodeRuntimeHandler]
}

// family are the pods that one controller has made of one template.
type family struct {
	owner    types.UID
	revision string
}

// traits are what the pods of a family have in common.
type traits struct {
	specs  alike[corev1.PodSpec]
	labels alike[map[string]string]
	owners alike[[]metav1.OwnerReference]
}

// How much is kept to be shared, whether it is still in use or not.
const (
	mostFamilies = 512
	mostStrings  = 4096
	mostAlike    = 16
)

func newPool() *pool {
	return &pool{families: map[family]*traits{}, strings: map[string]string{}}
}

// alike are the last few values of a kind that differ from each other.
type alike[T any] struct {
	values []*T
	oldest int
}

// share puts in place of *v an equal value that is known, or makes it known.
func (a *alike[T]) share(v *T) {
	for _, known := range a.values {
		if reflect.DeepEqual(known, v) {
			*v = *known
			return
		}
	}
	known := new(T)
	*known = *v
	if len(a.values) < mostAlike {
		a.values = append(a.values, known)
		return
	}
	a.values[a.oldest] = known
	a.oldest = (a.oldest + 1) % mostAlike
}

// conditions are alike, and compared without reflection, the latest first:
// those of each moment are new.
type conditions[T comparable] struct {
	values [mostAlike][]T
	latest int
}

func (c *conditions[T]) share(v *[]T) {
	for i := range mostAlike {
		if known := c.values[(c.latest+mostAlike-i)%mostAlike]; slices.Equal(known, *v) {
			*v = known
			return
		}
	}
	c.latest = (c.latest + 1) % mostAlike
	c.values[c.latest] = *v
}

// share goes through an object that its caller has just decoded and nobody
// else has seen.
func (p *pool) share(obj runtime.Object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch o := obj.(type) {
	case *api.Pod:
		// The two versions have the same fields; a conversion copies the outermost only.
		var spec corev1.PodSpec
		var status corev1.PodStatus
		if apiv1.Convert_core_PodSpec_To_v1_PodSpec(&o.Spec, &spec, nil) != nil ||
			apiv1.Convert_core_PodStatus_To_v1_PodStatus(&o.Status, &status, nil) != nil {
			return
		}
		p.pod(&o.ObjectMeta, &spec, &status)
		_ = apiv1.Convert_v1_PodSpec_To_core_PodSpec(&spec, &o.Spec, nil)
		_ = apiv1.Convert_v1_PodStatus_To_core_PodStatus(&status, &o.Status, nil)
	case *corev1.Pod:
		p.pod(&o.ObjectMeta, &o.Spec, &o.Status)
	case *api.Node:
		var status corev1.NodeStatus
		if apiv1.Convert_core_NodeStatus_To_v1_NodeStatus(&o.Status, &status, nil) != nil {
			return
		}
		p.nodeStatus(&status)
		_ = apiv1.Convert_v1_NodeStatus_To_core_NodeStatus(&status, &o.Status, nil)
	case *corev1.Node:
		p.nodeStatus(&o.Status)
	}
}

func (p *pool) pod(m *metav1.ObjectMeta, spec *corev1.PodSpec, status *corev1.PodStatus) {
	if owner := metav1.GetControllerOfNoCopy(m); owner != nil {
		p.string(&m.Namespace)
		p.string(&m.GenerateName)
		t := p.traitsOf(family{owner.UID, m.Labels["controller-revision-hash"] + m.Labels["pod-template-hash"]})
		t.labels.share(&m.Labels)
		t.owners.share(&m.OwnerReferences)
		node, affinity := spec.NodeName, spec.Affinity
		spec.NodeName, spec.Affinity = "", nil
		t.specs.share(spec)
		spec.NodeName, spec.Affinity = node, affinity
	}
	p.podStatus(status)
}

// sharePodStatus goes through the status of a pod that is kept.
func (p *pool) sharePodStatus(status *corev1.PodStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.podStatus(status)
}

func (p *pool) podStatus(status *corev1.PodStatus) {
	if len(status.Conditions) > 0 {
		p.podConditions.share(&status.Conditions)
	}
	p.string((*string)(&status.Phase))
	p.string((*string)(&status.QOSClass))
	for _, all := range [][]corev1.ContainerStatus{status.InitContainerStatuses, status.ContainerStatuses} {
		for i := range all {
			p.string(&all[i].Name)
			p.string(&all[i].Image)
			p.string(&all[i].ImageID)
		}
	}
	same(&status.PodIP, status.HostIP)
	for i := range status.HostIPs {
		same(&status.HostIPs[i].IP, status.HostIP)
	}
	for i := range status.PodIPs {
		same(&status.PodIPs[i].IP, status.PodIP)
	}
}

func (p *pool) traitsOf(f family) *traits {
	t := p.families[f]
	if t == nil {
		for other := range p.families {
			if len(p.families) < mostFamilies {
				break
			}
			delete(p.families, other)
		}
		t = &traits{}
		p.families[f] = t
	}
	return t
}

func (p *pool) nodeStatus(s *corev1.NodeStatus) {
	for _, list := range []*corev1.ResourceList{&s.Capacity, &s.Allocatable} {
		if *list != nil {
			p.resources.share(list)
		}
	}
	if len(s.RuntimeHandlers) > 0 {
		p.handlers.share(&s.RuntimeHandlers)
	}
	for i := range s.Conditions {
		c := &s.Conditions[i]
		for _, text := range []*string{(*string)(&c.Type), (*string)(&c.Status), &c.Reason, &c.Message} {
			p.string(text)
		}
	}
	if len(s.Conditions) > 0 {
		p.nodeConditions.share(&s.Conditions)
	}
	info := &s.NodeInfo
	for _, text := range []*string{
		&info.KernelVersion, &info.OSImage, &info.ContainerRuntimeVersion, &info.KubeletVersion,
		&info.OperatingSystem, &info.Architecture,
	} {
		p.string(text)
	}
}

// string puts an equal string in place of one of which there are many.
func (p *pool) string(s *string) {
	if *s == "" {
		return
	}
	if known, ok := p.strings[*s]; ok {
		*s = known
		return
	}
	if len(p.strings) >= mostStrings {
		clear(p.strings)
	}
	p.strings[*s] = *s
}

func same(s *string, as string) {
	if *s == as {
		*s = as
	}
}

// sharingCodec decodes what a watch cache is going to hold.
type sharingCodec struct {
	runtime.Codec
	pool *pool
}

func (c sharingCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, kind, err := c.Codec.Decode(data, defaults, into)
	if err == nil {
		c.pool.share(obj)
	}
	return obj, kind, err
}

// sharingLists is the store from which a watch cache is filled.
type sharingLists struct {
	storage.Interface
	pool *pool
}

func (s sharingLists) GetList(ctx context.Context, key string, options storage.ListOptions, list runtime.Object) error {
	if err := s.Interface.GetList(ctx, key, options, list); err != nil {
		return err
	}
	return meta.EachListItem(list, func(obj runtime.Object) error {
		s.pool.share(obj)
		return nil
	})
}
