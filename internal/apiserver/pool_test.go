package apiserver

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// decoded is a pod as it comes out of the store: nothing of it is shared yet.
func decoded(owner, node, image string) *corev1.Pod {
	controls := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "d-" + node, Namespace: "n", UID: types.UID(node), Labels: map[string]string{"controller-revision-hash": "1"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet", Name: "d", UID: types.UID(owner), Controller: &controls}},
		},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: image}},
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, LastTransitionTime: metav1.Unix(1, 0)}},
		},
	}
}

func TestPool(t *testing.T) {
	p := newPool()
	first, same, other := decoded("a", "1", "x"), decoded("a", "2", "x"), decoded("a", "3", "y")
	for _, pod := range []*corev1.Pod{first, same, other} {
		before := pod.DeepCopy()
		p.share(pod)
		if diff := cmp.Diff(before, pod); diff != "" {
			t.Errorf("pod %s was changed:\n%s", pod.Name, diff)
		}
	}
	inner := &api.Pod{}
	if err := legacyscheme.Scheme.Convert(decoded("a", "4", "x"), inner, nil); err != nil {
		t.Fatal(err)
	}
	before := inner.DeepCopy()
	p.share(inner)
	if diff := cmp.Diff(before, inner); diff != "" {
		t.Errorf("the pod of the internal version was changed:\n%s", diff)
	}
	containers := func(pod *corev1.Pod) unsafe.Pointer { return unsafe.Pointer(&pod.Spec.Containers[0]) }
	if containers(first) != containers(same) || unsafe.Pointer(&inner.Spec.Containers[0]) != containers(first) {
		t.Error("the same containers are held twice")
	}
	if containers(first) == containers(other) {
		t.Error("different containers are shared")
	}
	if &first.Status.Conditions[0] != &other.Status.Conditions[0] {
		t.Error("the same conditions are held twice")
	}
	if first.Spec.NodeName != "1" || same.Spec.NodeName != "2" {
		t.Error("the pods' nodes are mixed up")
	}
}

func TestPoolNodes(t *testing.T) {
	p := newPool()
	node := func(cpu string) *corev1.Node {
		has := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		return &corev1.Node{Status: corev1.NodeStatus{
			Capacity: has, Allocatable: has.DeepCopy(), NodeInfo: corev1.NodeSystemInfo{OSImage: "an image"},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, LastHeartbeatTime: metav1.NewTime(time.Unix(1, 0))}},
		}}
	}
	for i := range 2 * mostAlike {
		n := node(fmt.Sprint(i % (mostAlike + 3)))
		before := n.DeepCopy()
		p.share(n)
		if diff := cmp.Diff(before, n); diff != "" {
			t.Errorf("node %d was changed:\n%s", i, diff)
		}
	}
	if len(p.resources.values) != mostAlike {
		t.Errorf("%d values are kept, want %d", len(p.resources.values), mostAlike)
	}
}

func TestPoolIsBounded(t *testing.T) {
	p := newPool()
	for i := range 2 * mostFamilies {
		p.share(decoded(fmt.Sprint(i), "node", "x"))
	}
	if len(p.families) != mostFamilies {
		t.Errorf("%d families are kept, want %d", len(p.families), mostFamilies)
	}
	for i := range 2 * mostStrings {
		s := fmt.Sprint(i)
		p.string(&s)
	}
	if len(p.strings) > mostStrings {
		t.Errorf("%d strings are kept, more than %d", len(p.strings), mostStrings)
	}
}
