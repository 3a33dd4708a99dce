package podspec

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"legion.dev/legion/internal/ocispec"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var node = Node{
	Name: "n1", IP: "10.0.0.7", ServerHost: "10.0.0.1", ServerPort: "6443", Root: true, PodDir: "/pods",
	Allocatable:  v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("8Gi")},
	VolumeImages: map[string]Pulled{"files": {Image: &ocispec.Image{ID: "sha256:5", Layers: []string{"/images/low", "/images/high"}}}},
}

var objects = Objects{
	{ConfigMap, "c"}: {Data: map[string][]byte{"one": []byte("1"), "two": []byte("2 of $(one)"), "a=b": nil}, Binary: map[string][]byte{"bin": {0, 1}}},
	{Secret, "s"}:    {Data: map[string][]byte{"k": []byte("hidden")}},
	{Secret, "gone"}: nil,
	{Secret, "mine"}: {Trouble: "forbidden"},
}

// TestGolden compiles each testdata/*.yaml and compares with the .json beside
// it; go test -rewrite writes them.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pod := &v1.Pod{}
			if err := yaml.UnmarshalStrict(text, pod); err != nil {
				t.Fatal(err)
			}
			pod.Namespace, pod.UID = "default", "u1"
			group, report := Compile(pod, node, objects)
			delete(group.Annotations, PodAnnotation)
			shown := map[string]any{"group": group, "report": report}
			if v := Volumes(pod, node, objects); v != nil {
				shown["volumes"] = v
			}
			got, err := json.MarshalIndent(shown, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			golden := strings.TrimSuffix(file, ".yaml") + ".json"
			if *rewrite {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s (go test -rewrite, then look at the diff):\n%s", golden, got)
			}
		})
	}
}

// TestHostPathOfAnImage: a container sees nothing of the host by itself, also
// not what it mounts at the same place. Without a type a directory is made.
func TestHostPathOfAnImage(t *testing.T) {
	for class, want := range map[string]int{HostRuntime: 0, OCIRuntime: 1} {
		pod := &v1.Pod{Spec: v1.PodSpec{
			RuntimeClassName: &class,
			Containers:       []v1.Container{{Name: "c", Image: "i", Command: []string{"/x"}, VolumeMounts: []v1.VolumeMount{{Name: "log", MountPath: "/var/log"}}}},
			Volumes:          []v1.Volume{{Name: "log", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/var/log"}}}},
		}}
		n := node
		n.OCI, n.Images = &ocispec.Runtime{Program: "/usr/sbin/runc", State: "/run/oci"}, map[string]Pulled{"i": {Image: &ocispec.Image{ID: "sha256:1"}}}
		g, report := Compile(pod, n, nil)
		if len(report.Blocked) > 0 {
			t.Fatal(report.Blocked)
		}
		if m := g.Services[0].Exec.Mounts; len(m) != want || want == 1 && (m[0].Target != "/var/log" || m[0].Is != anything) {
			t.Errorf("%s: %+v", class, m)
		}
	}
}

// TestSharedPIDs: what holds the PID namespace starts before all containers, and
// is there for images only.
func TestSharedPIDs(t *testing.T) {
	yes := true
	for class, want := range map[string]string{OCIRuntime: ocispec.Holder + ":0 init:2 main:3", HostRuntime: "init:1 main:2"} {
		ctr := func(name string) v1.Container { return v1.Container{Name: name, Image: "i", Command: []string{"/x"}} }
		pod := &v1.Pod{Spec: v1.PodSpec{
			RuntimeClassName: &class, ShareProcessNamespace: &yes, InitContainers: []v1.Container{ctr("init")}, Containers: []v1.Container{ctr("main")},
		}}
		n := node
		n.OCI, n.Images = &ocispec.Runtime{Program: "/usr/sbin/runc", State: "/run/oci"}, map[string]Pulled{"i": {Image: &ocispec.Image{ID: "sha256:1"}}}
		g, report := Compile(pod, n, nil)
		if len(report.Blocked)+len(report.NotHonoured) > 0 {
			t.Fatal(report)
		}
		var got []string
		for _, s := range g.Services {
			got = append(got, fmt.Sprintf("%s:%d", s.Name, s.Stage))
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: %s, want %s", class, text, want)
		}
	}
}

// TestImageVolume: the containers that mount an image wait for it, with its
// reason.
func TestImageVolume(t *testing.T) {
	class := HostRuntime
	ctr := func(name string, mounts ...v1.VolumeMount) v1.Container {
		return v1.Container{Name: name, Command: []string{"/x"}, VolumeMounts: mounts}
	}
	pod := &v1.Pod{Spec: v1.PodSpec{
		RuntimeClassName: &class, Containers: []v1.Container{ctr("with", v1.VolumeMount{Name: "data", MountPath: "/data"}), ctr("without")},
		Volumes: []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "data:1"}}}},
	}}
	for _, test := range []struct {
		is   Pulled
		want string
	}{
		{Pulled{}, "[{with ContainerCreating }]"},
		{Pulled{Reason: "ErrImagePull", Message: "no"}, "[{with ErrImagePull no}]"},
		{Pulled{Image: &ocispec.Image{ID: "sha256:1"}}, "[]"},
	} {
		n := node
		n.VolumeImages = map[string]Pulled{"data": test.is}
		if _, report := Compile(pod, n, nil); fmt.Sprint(report.Blocked) != test.want || len(report.NotHonoured) > 0 {
			t.Errorf("%+v: %+v, want %s", test.is, report, test.want)
		}
	}
	pod.Spec.ImagePullSecrets = []v1.LocalObjectReference{{Name: "login"}}
	if refs := References(pod); len(refs) != 1 || refs[0] != (Ref{Secret, "login"}) {
		t.Errorf("it refers to %v", refs)
	}
}

func TestPodIsKeptWithTheGroup(t *testing.T) {
	class := HostRuntime
	pod := &v1.Pod{Spec: v1.PodSpec{RuntimeClassName: &class, Containers: []v1.Container{{Name: "c", Command: []string{"/bin/true"}}}}}
	pod.Name, pod.Namespace, pod.UID = "p", "ns", "u2"
	pod.Status.Phase = v1.PodRunning
	g, report := Compile(pod, node, objects)
	if len(report.Blocked) > 0 {
		t.Fatalf("blocked: %v", report.Blocked)
	}
	back, err := Decode(g)
	if err != nil {
		t.Fatal(err)
	}
	if back.Name != "p" || back.Spec.Containers[0].Name != "c" || back.Status.Phase != "" {
		t.Errorf("got back %+v", back)
	}
	if uid, ok := UID(g.Name); !ok || uid != "u2" {
		t.Errorf("UID of %q: %q %v", g.Name, uid, ok)
	}
	if _, ok := UID("cron.service"); ok {
		t.Error("cron.service is no pod's")
	}
	g.Annotations = nil
	if _, err := Decode(g); err == nil {
		t.Error("a group without a pod decoded")
	}
}

// TestBlocked holds the words for what cannot run: each says what to do.
func TestBlocked(t *testing.T) {
	class := func(s string) *string { return &s }
	yes, root := true, int64(0)
	run := []string{"/bin/true"}
	for name, test := range map[string]struct {
		spec   v1.PodSpec
		reason string
		want   []string
	}{
		"no runtime": {
			v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: "nginx:1"}}},
			RuntimeNotFound,
			[]string{`no runtime for image "nginx:1" on this node`, "has runtime handlers: host", "set runtimeClassName: host"},
		},
		"other runtime": {
			v1.PodSpec{RuntimeClassName: class("gvisor"), Containers: []v1.Container{{Name: "c", Command: run}}},
			RuntimeNotFound,
			[]string{`runtimeClassName "gvisor"`, "set runtimeClassName: host"},
		},
		"no command": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Args: run}}},
			ConfigError,
			[]string{`container "c" has no command`, "set spec.containers[0].command"},
		},
		"init container without a command": {
			v1.PodSpec{RuntimeClassName: class("host"), InitContainers: []v1.Container{{Name: "c"}}, Containers: []v1.Container{{Name: "d", Command: run}}},
			ConfigError,
			[]string{`container "c" has no command`, "set spec.initContainers[0].command"},
		},
		"non-root as root": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, SecurityContext: &v1.SecurityContext{RunAsNonRoot: &yes, RunAsUser: &root}}}},
			ConfigError,
			[]string{"runAsNonRoot", "runAsUser"},
		},
		"secret": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, Env: []v1.EnvVar{{
				Name: "A", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "gone"}, Key: "k"}},
			}}}}},
			ConfigError,
			[]string{`spec.containers[0].env[0].valueFrom.secretKeyRef: secret "gone" not found in namespace ns: create it`},
		},
		"secret that is not ours": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, EnvFrom: []v1.EnvFromSource{{
				SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "mine"}},
			}}}}},
			ConfigError,
			[]string{`spec.containers[0].envFrom[0].secretRef: cannot read secret "mine" in namespace ns: forbidden`},
		},
		"key": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, Env: []v1.EnvVar{{
				Name: "A", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "c"}, Key: "three"}},
			}}}}},
			ConfigError,
			[]string{"couldn't find key three in configmap ns/c"},
		},
		"not read yet": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, EnvFrom: []v1.EnvFromSource{{
				ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "unread"}},
			}}}}},
			Creating,
			nil,
		},
		"named port": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, ReadinessProbe: &v1.Probe{
				ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: namedPort("web")}},
			}}}},
			ConfigError,
			[]string{`readinessProbe.tcpSocket.port is "web"`},
		},
		"relative directory": {
			v1.PodSpec{RuntimeClassName: class("host"), Containers: []v1.Container{{Name: "c", Command: run, WorkingDir: "x"}}},
			ConfigError,
			[]string{`workingDir "x" is not absolute`},
		},
		"other system": {
			v1.PodSpec{RuntimeClassName: class("host"), OS: &v1.PodOS{Name: v1.Windows}, Containers: []v1.Container{{Name: "c", Command: run}}},
			ConfigError,
			[]string{`spec.os.name is "windows"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, report := Compile(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: test.spec}, node, objects)
			if len(report.Blocked) == 0 {
				t.Fatal("not blocked")
			}
			b := report.Blocked[0]
			if b.Reason != test.reason || b.Container != "c" {
				t.Errorf("%+v", b)
			}
			for _, want := range test.want {
				if !strings.Contains(b.Message, want) {
					t.Errorf("%q lacks %q", b.Message, want)
				}
			}
		})
	}
}

func TestReferences(t *testing.T) {
	text := []byte(`{"spec": {"initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "b"}}]}], "containers": [{"name": "c",
		"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "z", "key": "k"}}}],
		"envFrom": [{"configMapRef": {"name": "y"}}, {"configMapRef": {"name": "z"}}]}]}}`)
	pod := &v1.Pod{}
	if err := json.Unmarshal(text, pod); err != nil {
		t.Fatal(err)
	}
	want := []Ref{{ConfigMap, "y"}, {ConfigMap, "z"}, {Secret, "a"}, {Secret, "b"}}
	if got := References(pod); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func namedPort(name string) intstr.IntOrString { return intstr.FromString(name) }

// TestEphemeral: an ephemeral container is started beside the others, in the PID
// namespace of the one that it is to look at; what it lacks is its own matter.
func TestEphemeral(t *testing.T) {
	class := OCIRuntime
	ctr := func(name, image string) v1.EphemeralContainerCommon {
		return v1.EphemeralContainerCommon{Name: name, Image: image, Command: []string{"/x"}}
	}
	pod := &v1.Pod{Spec: v1.PodSpec{
		RuntimeClassName: &class, InitContainers: []v1.Container{v1.Container(ctr("init", "i"))}, Containers: []v1.Container{v1.Container(ctr("main", "i"))},
		EphemeralContainers: []v1.EphemeralContainer{
			{EphemeralContainerCommon: ctr("alone", "i")},
			{EphemeralContainerCommon: ctr("lacking", "other")},
			{EphemeralContainerCommon: ctr("beside", "i"), TargetContainerName: "main"},
		},
	}}
	pod.Spec.EphemeralContainers[0].EnvFrom = []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "s"}}}}
	n := node
	n.OCI, n.Images = &ocispec.Runtime{Program: "/usr/sbin/runc", State: "/run/oci"}, map[string]Pulled{"i": {Image: &ocispec.Image{ID: "sha256:1"}}, "other": {Reason: "ErrImagePull", Message: "no"}}
	g, report := Compile(pod, n, objects)
	if len(report.Blocked)+len(report.NotHonoured) > 0 || fmt.Sprint(report.Ephemeral) != "[{lacking ErrImagePull no}]" {
		t.Errorf("%+v", report)
	}
	var got []string
	for _, s := range g.Services {
		got = append(got, fmt.Sprintf("%s:%d:%v:%s", s.Name, s.Stage, s.Ephemeral, s.Exec.Container.PIDs))
	}
	if text, want := strings.Join(got, " "), "init:1:false: main:2:false: alone:2:true: beside:2:true:main"; text != want {
		t.Errorf("%s, want %s", text, want)
	}
	if refs := References(pod); len(refs) != 1 || refs[0] != (Ref{Secret, "s"}) {
		t.Errorf("it refers to %v", refs)
	}
	pod.Spec.ShareProcessNamespace = new(true)
	if g, _ := Compile(pod, n, objects); g.Services[len(g.Services)-1].Exec.Container.PIDs != ocispec.Holder {
		t.Errorf("of a pod with one PID namespace: %+v", g.Services[len(g.Services)-1])
	}
}
