package controller_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A pod that names no node would wait for ever in silence; it says why.
func TestPodThatNamesNoNode(t *testing.T) {
	f := newField(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "bare", Namespace: f.ns},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if _, err := client.CoreV1().Pods(f.ns).Create(f.ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.untilPods("the pod says why it waits", func(pods []corev1.Pod) bool {
		for _, c := range pods[0].Status.Conditions {
			if c.Type == corev1.PodScheduled {
				return c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "spec.nodeName")
			}
		}
		return false
	})
	f.untilEvent("bare", "FailedScheduling")
}
