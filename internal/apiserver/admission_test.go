package apiserver

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/daemonset"
)

// A DaemonSet whose rollout annotations are wrong is refused with the path of
// each and what is allowed; one that is right is taken, and its status and the
// rest of it can be changed.
func TestRolloutAdmission(t *testing.T) {
	f := start(t, t.TempDir())
	api := f.admin.AppsV1().DaemonSets("default")
	labels := map[string]string{"app": "d"}
	ds := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Annotations: map[string]string{
			daemonset.PartitionKey: "-1", daemonset.BakeKey: "soon", "rollout.legion.dev/pause": "true",
		}},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.org/daemon:1"}}},
			},
		},
	}
	_, err := api.Create(t.Context(), ds, metav1.CreateOptions{})
	if !apierrors.IsInvalid(err) {
		t.Fatalf("it was not refused: %v", err)
	}
	for _, part := range []string{
		"metadata.annotations[rollout.legion.dev/partition]", "0% to 100%",
		"metadata.annotations[rollout.legion.dev/bake]", `"soon"`, "such as 5m",
		"metadata.annotations[rollout.legion.dev/pause]", "known are bake, canary",
	} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	ds.Annotations = map[string]string{daemonset.PartitionKey: "50%", daemonset.BakeKey: "5m"}
	if _, err := api.Create(t.Context(), ds, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for patch, ok := range map[string]bool{
		`{"metadata":{"annotations":{"rollout.legion.dev/partition":"60%"}}}`: true,
		`{"metadata":{"annotations":{"rollout.legion.dev/partition":"x"}}}`:   false,
		`{"metadata":{"labels":{"a":"b"}}}`:                                   true,
	} {
		if _, err := api.Patch(t.Context(), "d", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); (err == nil) != ok {
			t.Errorf("%s: %v", patch, err)
		}
	}
}
