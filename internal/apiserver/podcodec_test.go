package apiserver

import (
	"context"
	"fmt"
	"math/rand"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	corefuzzer "k8s.io/kubernetes/pkg/apis/core/fuzzer"
)

// storedPods is the codec by which the store keeps pods.
func storedPods() runtime.Codec {
	serializer := protobuf.NewSerializer(legacyscheme.Scheme, legacyscheme.Scheme)
	return legacyscheme.Codecs.CodecForVersions(serializer, legacyscheme.Codecs.UniversalDeserializer(), corev1.SchemeGroupVersion, runtime.InternalGroupVersioner)
}

func encodedPod(t *testing.T, pod runtime.Object) []byte {
	t.Helper()
	data, err := runtime.Encode(storedPods(), pod)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestPodCodec decodes pods of all kinds, each as upstream's codec does: when
// their parts are seen the first time, and when they are known.
func TestPodCodec(t *testing.T) {
	const seed = 20261126
	random := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, corefuzzer.Funcs), rand.NewSource(seed), legacyscheme.Codecs)
	parts := newPodParts()
	var before *api.Pod
	for i := range 300 {
		pod := &api.Pod{}
		random.Fill(pod)
		if i%3 > 0 {
			// Another pod of the same template.
			pod.Spec = *before.Spec.DeepCopy()
			pod.Spec.NodeName = fmt.Sprint("node-", i)
			pod.Labels, pod.OwnerReferences = before.Labels, before.OwnerReferences
			pod.Spec.Affinity = &api.Affinity{NodeAffinity: &api.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &api.NodeSelector{
				NodeSelectorTerms: []api.NodeSelectorTerm{{MatchFields: []api.NodeSelectorRequirement{
					{Key: metav1.ObjectNameField, Operator: api.NodeSelectorOpIn, Values: []string{pod.Spec.NodeName}},
				}}},
			}}}
		}
		before = pod
		data := encodedPod(t, pod)
		want, err := runtime.Decode(storedPods(), data)
		if err != nil {
			t.Fatal(err)
		}
		for _, keeper := range []*pool{nil, newPool()} {
			codec := podCodec{storedPods(), parts, keeper}
			for _, into := range []runtime.Object{nil, &api.Pod{}, &api.Pod{ObjectMeta: metav1.ObjectMeta{Name: "another"}}} {
				got, kind, err := codec.Decode(data, nil, into)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("pod %d of seed %d, keeper %v: not as upstream decodes it:\n%s", i, seed, keeper != nil, diff)
				}
				if into != nil && got != into {
					t.Error("it was not decoded into what was given")
				}
				if *kind != podKind {
					t.Errorf("its kind is %v", kind)
				}
			}
		}
	}
	if changed := parts.changed(storedPods()); len(changed) > 0 {
		t.Errorf("%d specs were written to", len(changed))
	}
}

func TestPodCodecLeavesOthersAlone(t *testing.T) {
	codec := podCodec{storedPods(), newPodParts(), newPool()}
	node := encodedPod(t, &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	obj, _, err := codec.Decode(node, nil, nil)
	if _, ok := obj.(*api.Node); !ok || err != nil {
		t.Errorf("a node is decoded as %T, %v", obj, err)
	}
	pod := encodedPod(t, &api.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	for name, data := range map[string][]byte{
		"empty": nil, "JSON": []byte(`{"kind":"Pod","apiVersion":"v1"}`), "cut": pod[:len(pod)-3], "mark alone": protobufMark,
	} {
		want, _, wantErr := codec.Codec.Decode(data, nil, nil)
		got, _, err := codec.Decode(data, nil, nil)
		if diff := cmp.Diff(want, got); diff != "" || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("%s: %v, want %v\n%s", name, err, wantErr, diff)
		}
	}
}

// FuzzPodCodec gives the codec what is no pod, or hardly one.
func FuzzPodCodec(f *testing.F) {
	for _, pod := range samples() {
		data, err := pod.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		whole, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Raw: data}).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte("k8s\x00"), whole...))
	}
	codec := podCodec{storedPods(), newPodParts(), newPool()}
	f.Fuzz(func(t *testing.T, data []byte) {
		want, _, wantErr := codec.Codec.Decode(data, nil, nil)
		for range 2 {
			got, _, err := codec.Decode(data, nil, nil)
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("%v, want %v", err, wantErr)
			}
			if diff := cmp.Diff(want, got); err == nil && diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func TestSeenIsBounded(t *testing.T) {
	s := seen[int]{least: 4}
	for i := range 100 {
		s.put(seenValue[int]{fmt.Sprint(i), &i})
		if s.get([]byte("0")) == nil {
			t.Fatalf("what is wanted all the time is forgotten after %d others", i)
		}
		if n := len(s.young) + len(s.old); n > 2*s.least {
			t.Fatalf("%d values are remembered", n)
		}
	}
	if s.get([]byte("50")) != nil {
		t.Error("what is not wanted any more is not forgotten")
	}
}

func TestKeptPodsLieApart(t *testing.T) {
	// https://go.dev/src/internal/runtime/gc/sizeclasses.go: the sizes in which
	// objects lie together.
	const below, above = 1280, 1408
	if size := unsafe.Sizeof(api.Pod{}); size > below || unsafe.Sizeof(keptPod{}) <= below || unsafe.Sizeof(keptPod{}) > above {
		t.Errorf("a pod has %d bytes and a kept one %d: they should lie apart, at most %d and at most %d", size, unsafe.Sizeof(keptPod{}), below, above)
	}
}

// TestSharedSpecsStay does to pods what the API can, and looks whether what
// they share was written to.
func TestSharedSpecsStay(t *testing.T) {
	insides := make(chan kubernetes.Interface, 1)
	f := startWith(t, Config{
		Dir: t.TempDir(), Listen: "127.0.0.1",
		Controllers: func(ctx context.Context, inside Inside) error {
			insides <- inside.Client
			<-ctx.Done()
			return nil
		},
	})
	f.awaitAccount(t, "default")
	f.awaitAccount(t, "kube-system")
	inside := <-insides
	for _, sample := range samples() {
		// Its owner does not exist, so upstream's garbage collector would remove it.
		sample.OwnerReferences = nil
		pods := f.admin.CoreV1().Pods(sample.Namespace)
		for range 3 {
			pod, err := inside.CoreV1().Pods(sample.Namespace).Create(t.Context(), sample, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			workOn(t, f.admin, pod)
			if err := pods.Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := pods.Delete(t.Context(), pod.Name, *metav1.NewDeleteOptions(0)); err != nil {
				t.Fatal(err)
			}
		}
	}
	store := inside.(*directClient).direct.stores.Load().pods.Storage.Storage.(podStorage)
	if len(store.parts.specs.young) == 0 {
		t.Fatal("no spec is known")
	}
	if changed := store.parts.changed(storedPods()); len(changed) > 0 {
		t.Errorf("%d specs were written to", len(changed))
	}
}

// workOn changes a pod in all ways in which a pod may be changed.
func workOn(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) {
	t.Helper()
	pods := client.CoreV1().Pods(pod.Namespace)
	for what, patch := range map[string]string{
		"":       `{"metadata":{"labels":{"more":"1"},"annotations":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"example.org/other"}],"activeDeadlineSeconds":600}}`,
		"status": `{"status":{"phase":"Running","startTime":"2026-01-01T00:00:00Z","podIPs":[{"ip":"127.0.0.1"}],"conditions":[{"type":"Ready","status":"True"}]}}`,
	} {
		var subresources []string
		if what != "" {
			subresources = append(subresources, what)
		}
		if _, err := pods.Patch(t.Context(), pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...); err != nil {
			t.Fatalf("%q: %v", what, err)
		}
	}
	current, err := pods.Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	current.Spec.Tolerations = append(current.Spec.Tolerations, corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists})
	if current, err = pods.Update(t.Context(), current, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	current.Status.Conditions = append(current.Status.Conditions, corev1.PodCondition{Type: "example.org/x", Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(1, 0))})
	if _, err = pods.UpdateStatus(t.Context(), current, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace}}
	if err := pods.EvictV1(t.Context(), eviction); err != nil {
		t.Fatal(err)
	}
}
