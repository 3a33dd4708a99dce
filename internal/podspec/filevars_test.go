package podspec

import (
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
)

// TestFileVariables: a mark stands for what only the start knows, wherever
// $(NAME) is expanded; a mount cannot wait for that.
func TestFileVariables(t *testing.T) {
	class, optional := HostRuntime, true
	from := func(name, key string, optional *bool) v1.EnvVar {
		return v1.EnvVar{Name: name, ValueFrom: &v1.EnvVarSource{FileKeyRef: &v1.FileKeySelector{VolumeName: "vars", Path: "dir/env", Key: key, Optional: optional}}}
	}
	pod := &v1.Pod{Spec: v1.PodSpec{
		RuntimeClassName: &class, Volumes: []v1.Volume{{Name: "vars", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}},
		Containers: []v1.Container{{
			Name: "c", Command: []string{"x", "$(A)"}, Env: []v1.EnvVar{from("A", "ONE", nil), from("B", "TWO", &optional), {Name: "C", Value: "<$(A) $(B)>"}},
		}},
	}}
	pod.UID = "u"
	root := node
	root.Root, root.PodDir = true, "/pods"
	g, report := Compile(pod, root, nil)
	exec := g.Services[0].Exec
	dir := "/pods/u/volumes/vars"
	want := []service.FileVariable{
		{Name: "A", Mark: "\x000\x00", Dir: dir, Path: "dir/env", Key: "ONE"}, {Name: "B", Mark: "\x001\x00", Dir: dir, Path: "dir/env", Key: "TWO", Optional: true},
	}
	if !slices.Equal(exec.FileVariables, want) || g.Services[0].Start[0].Argv[1] != "\x000\x00" || len(report.NotHonoured)+len(report.Blocked) > 0 {
		t.Errorf("%+v, %+v, %+v", exec.FileVariables, g.Services[0].Start, report)
	}
	for _, kv := range []string{"A=\x000\x00", "B=\x001\x00", "C=<\x000\x00 \x001\x00>"} {
		if !slices.Contains(exec.Environment, kv) {
			t.Errorf("there is no %q in %q", kv, exec.Environment)
		}
	}

	pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "vars", MountPath: "/v", SubPathExpr: "$(A)"}}
	if _, report := Compile(pod, root, nil); len(report.Blocked) != 1 || !strings.Contains(report.Blocked[0].Message, "subPathExpr") {
		t.Errorf("%+v", report.Blocked)
	}
	pod.Spec.Containers[0].VolumeMounts = nil
	rootless := node
	rootless.Root = false
	if _, report := Compile(pod, rootless, nil); len(report.Blocked) != 1 || !slices.Contains(report.NotHonoured, "spec.containers[0].env[1].valueFrom.fileKeyRef") {
		t.Errorf("without root: %+v", report)
	}
}
