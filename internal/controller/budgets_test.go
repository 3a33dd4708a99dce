package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// What upstream's controller writes of a pod, which it knows in part, leaves the
// rest as it is; and nothing is written to a pod that has changed meanwhile.
func TestPartOfAPodIsWritten(t *testing.T) {
	whole := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", UID: "1", ResourceVersion: "7", Annotations: map[string]string{"a": "b"}},
		Status:     corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "main", ContainerID: "legion://1"}}},
	}
	client := fake.NewClientset(whole)
	part := whole.DeepCopy()
	part.Annotations, part.Status.ContainerStatuses = nil, nil
	part.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionFalse}}
	pods := wholePods{client}.CoreV1().Pods("default")
	if _, err := pods.UpdateStatus(t.Context(), part, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Annotations["a"] != "b" || len(got.Status.ContainerStatuses) != 1 || len(got.Status.Conditions) != 1 {
		t.Errorf("the pod became %+v", got)
	}
	for _, change := range []func(*corev1.Pod){
		func(p *corev1.Pod) { p.ResourceVersion = "6" },
		func(p *corev1.Pod) { p.UID = "2" },
	} {
		other := part.DeepCopy()
		change(other)
		if _, err := pods.UpdateStatus(t.Context(), other, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			t.Errorf("another pod's status was written: %v", err)
		}
	}
}
