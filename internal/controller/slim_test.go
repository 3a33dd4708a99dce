package controller

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is slim for the controller's own cache stays whole for the others that
// have the lists of the same pod.
func TestSlimWritesToNoList(t *testing.T) {
	waiting := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "r", Message: "m"}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{"a": "b"}},
		Spec: corev1.PodSpec{
			Containers:     []corev1.Container{{Name: "c", Image: "i", Args: []string{"x"}}},
			InitContainers: []corev1.Container{{Name: "init", Image: "i"}},
			Volumes:        []corev1.Volume{{Name: "v"}},
		},
		Status: corev1.PodStatus{
			ContainerStatuses:     []corev1.ContainerStatus{{Name: "c", Image: "i", ContainerID: "id", State: waiting}},
			InitContainerStatuses: []corev1.ContainerStatus{{Name: "init", Image: "i", State: waiting}},
		},
	}
	before, other := pod.DeepCopy(), *pod
	if _, err := slim(&other); err != nil {
		t.Fatal(err)
	}
	if c := other.Spec.Containers[0]; c.Image != "" || other.Status.ContainerStatuses[0].ContainerID != "" || other.Spec.InitContainers[0].Image != "" {
		t.Errorf("it is not slim: %+v", other)
	}
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("another pod with the same lists is changed:\n%s", diff)
	}
}
