package apiserver

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"reflect"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"
	api "k8s.io/kubernetes/pkg/apis/core"
	apiv1 "k8s.io/kubernetes/pkg/apis/core/v1"
)

// scratches are where a spec is put together to be looked for.
var scratches = sync.Pool{New: func() any { return new([4096]byte) }}

// podCodec decodes pods by the parts in which they are alike. Of a DaemonSet's
// pods the specs are the same, but for the node and the affinity that pins them
// there; a spec is decoded and defaulted once, by the codec below, and what it
// was encoded as says where it is wanted again. Whatever is not a pod as this
// server encodes it is left to that codec.
//
// A spec is shared by the watch caches, and by who reads a pod from the store or
// updates one: nobody may write to what it points to. [podParts.changed] says
// whether somebody did.
type podCodec struct {
	runtime.Codec
	parts *podParts
	// keeper, if there is one, says that what is decoded is kept and only read:
	// then all is shared that can be, as the codec below does then, too.
	keeper *pool
}

// podParts are the parts of pods, by what they are encoded as.
type podParts struct {
	mu         sync.Mutex
	specs      seen[api.PodSpec]
	affinities seen[api.Affinity]
	metas      seen[metav1.ObjectMeta]
	// statuses go by a hash: they are many, and seldom the same in two pods.
	statuses seen[api.PodStatus]
	seeds    [2]maphash.Seed
	// fields are those that selectors may name, by the pod's name.
	fields seen[fields.Set]
	// recent are the pods that the watch cache has of late, by resource version.
	recent seen[api.Pod]
}

// How many parts are remembered at least; a fleet has an affinity for each node.
const (
	seenSpecs      = 256
	seenAffinities = 8192
	seenMetas      = 256
	seenVersions   = 8192
	seenRecent     = 512
)

func newPodParts() *podParts {
	return &podParts{
		specs:      seen[api.PodSpec]{least: seenSpecs},
		affinities: seen[api.Affinity]{least: seenAffinities},
		metas:      seen[metav1.ObjectMeta]{least: seenMetas},
		statuses:   seen[api.PodStatus]{least: seenVersions},
		seeds:      [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		fields:     seen[fields.Set]{least: seenVersions},
		recent:     seen[api.Pod]{least: seenRecent},
	}
}

// seen are values by what they are encoded as: those of the last while.
type seen[T any] struct {
	young, old map[string]seenValue[T]
	least      int
}

type seenValue[T any] struct {
	key   string
	value *T
}

func (s *seen[T]) get(key []byte) *T {
	if v, ok := s.young[string(key)]; ok {
		return v.value
	}
	v, ok := s.old[string(key)]
	if ok {
		s.put(v)
	}
	return v.value
}

func (s *seen[T]) put(v seenValue[T]) {
	if s.young == nil || len(s.young) >= s.least {
		s.old, s.young = s.young, map[string]seenValue[T]{}
	}
	s.young[v.key] = v
}

// keptPod is a pod that is kept. It is a little larger than it need be: objects
// of a size lie together, and the pods that requests decode are garbage soon.
// Among them those that are kept would hold on to many times their own memory.
type keptPod struct {
	api.Pod
	_ [128]byte
}

// keptVersionedPod is one of the API's version, as informers have them.
type keptVersionedPod struct {
	corev1.Pod
	_ [128]byte
}

// Decode decodes a pod by its parts, all else by the codec below.
func (c podCodec) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	pod, wanted := into.(*api.Pod)
	if into != nil && !wanted {
		return c.Codec.Decode(data, defaults, into)
	}
	scratch := scratches.Get().(*[4096]byte)
	defer scratches.Put(scratch)
	parts, ok := splitPod(data, scratch[:0])
	if !ok {
		return c.Codec.Decode(data, defaults, into)
	}
	spec, affinity := c.parts.spec(parts)
	if spec == nil {
		obj, kind, err := c.Codec.Decode(data, defaults, into)
		if whole, isPod := obj.(*api.Pod); err == nil && isPod {
			c.parts.learn(parts, &whole.Spec)
		}
		return obj, kind, err
	}
	if pod == nil {
		pod = &(&keptPod{}).Pod
	}
	*pod = api.Pod{Spec: *spec}
	pod.Spec.NodeName, pod.Spec.Affinity = string(parts.node), affinity
	if err := c.meta(parts.meta, &pod.ObjectMeta); err != nil {
		return nil, nil, err
	}
	if err := c.status(parts.status, &pod.Status); err != nil {
		return nil, nil, err
	}
	kind := podKind
	return pod, &kind, nil
}

// meta decodes a pod's metadata.
func (c podCodec) meta(data []byte, meta *metav1.ObjectMeta) error {
	if c.keeper == nil {
		return meta.Unmarshal(data)
	}
	var alike, own [1024]byte
	common, rest, ok := part(data, alike[:0], own[:0], func(number protowire.Number) bool {
		return number == metaGenerateName || number == metaNamespace || number == metaLabels || number == metaOwners
	})
	if !ok {
		return meta.Unmarshal(data)
	}
	shared, err := c.parts.meta(common)
	if err != nil {
		return err
	}
	*meta = *shared
	return meta.Unmarshal(rest)
}

// status decodes a pod's status. The versions of a pod that is being deleted
// all have that of before.
func (c podCodec) status(data []byte, status *api.PodStatus) error {
	var id []byte
	if c.keeper != nil {
		id = binary.NativeEndian.AppendUint64(make([]byte, 0, 16), maphash.Bytes(c.parts.seeds[0], data))
		id = binary.NativeEndian.AppendUint64(id, maphash.Bytes(c.parts.seeds[1], data))
		if known := c.parts.status(id); known != nil {
			*status = *known
			return nil
		}
	}
	var encoded corev1.PodStatus
	if err := encoded.Unmarshal(data); err != nil {
		return err
	}
	if c.keeper != nil {
		c.keeper.sharePodStatus(&encoded)
	}
	if err := apiv1.Convert_v1_PodStatus_To_core_PodStatus(&encoded, status, nil); err != nil {
		return err
	}
	if c.keeper != nil {
		own := *status
		c.parts.mu.Lock()
		defer c.parts.mu.Unlock()
		c.parts.statuses.put(seenValue[api.PodStatus]{string(id), &own})
	}
	return nil
}

func (p *podParts) status(id []byte) *api.PodStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.statuses.get(id)
}

// attributes has the versions of a pod share what selectors ask for as long as
// that is the same, and remembers the pods that it is asked of, which are those
// of the watch cache.
func (p *podParts) attributes(of storage.AttrFunc) storage.AttrFunc {
	return func(obj runtime.Object) (labels.Set, fields.Set, error) {
		its, chosen, err := of(obj)
		pod, ok := obj.(*api.Pod)
		if err != nil || !ok {
			return its, chosen, err
		}
		key := append(append(append(make([]byte, 0, 128), pod.Namespace...), '/'), pod.Name...)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.recent.put(seenValue[api.Pod]{pod.ResourceVersion, pod})
		if known := p.fields.get(key); known != nil && maps.Equal(*known, chosen) {
			return its, *known, nil
		}
		p.fields.put(seenValue[fields.Set]{string(key), &chosen})
		return its, chosen, nil
	}
}

// original is what the watch cache has of a pod that several watchers are told
// of: upstream would make each in this process a copy.
func (p *podParts) original(shared runtime.CacheableObject) runtime.Object {
	if of, ok := shared.(metav1.Object); ok {
		p.mu.Lock()
		pod := p.recent.get([]byte(of.GetResourceVersion()))
		p.mu.Unlock()
		if pod != nil && pod.UID == of.GetUID() {
			return pod
		}
	}
	return shared.GetObject()
}

// meta returns what is encoded so, which is shared.
func (p *podParts) meta(data []byte) (*metav1.ObjectMeta, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.metas.get(data); known != nil {
		return known, nil
	}
	meta := &metav1.ObjectMeta{}
	if err := meta.Unmarshal(data); err != nil {
		return nil, err
	}
	p.metas.put(seenValue[metav1.ObjectMeta]{string(data), meta})
	return meta, nil
}

// spec returns the spec, without its node, and the affinity of a pod, if known.
func (p *podParts) spec(pod podBytes) (*api.PodSpec, *api.Affinity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	spec := p.specs.get(pod.spec)
	if spec == nil || len(pod.affinity) == 0 {
		return spec, nil
	}
	if known := p.affinities.get(pod.affinity); known != nil {
		return spec, known
	}
	var encoded corev1.PodSpec
	var decoded api.PodSpec
	if encoded.Unmarshal(pod.affinity) != nil || apiv1.Convert_v1_PodSpec_To_core_PodSpec(&encoded, &decoded, nil) != nil {
		return nil, nil
	}
	p.affinities.put(seenValue[api.Affinity]{string(pod.affinity), decoded.Affinity})
	return spec, decoded.Affinity
}

// learn remembers a spec that has been decoded and defaulted.
func (p *podParts) learn(pod podBytes, spec *api.PodSpec) {
	own := spec.DeepCopy()
	own.NodeName, own.Affinity = "", nil
	p.mu.Lock()
	defer p.mu.Unlock()
	p.specs.put(seenValue[api.PodSpec]{string(pod.spec), own})
}

// changed names the specs to which somebody has written since they were
// decoded by codec.
func (p *podParts) changed(codec runtime.Codec) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var changed []string
	for _, specs := range []map[string]seenValue[api.PodSpec]{p.specs.young, p.specs.old} {
		for key, known := range specs {
			fields := protowire.AppendTag(nil, podSpecField, protowire.BytesType)
			raw := protowire.AppendBytes(fields, []byte(key))
			data, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Raw: raw}).Marshal()
			if err != nil {
				continue
			}
			obj, _, err := codec.Decode(append(bytes.Clone(protobufMark), data...), nil, nil)
			if pod, ok := obj.(*api.Pod); err != nil || !ok || !reflect.DeepEqual(&pod.Spec, known.value) {
				changed = append(changed, key)
			}
		}
	}
	return changed
}
