package podspec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"legion.dev/legion/internal/ocispec"
)

// TestManifests holds docs/MANIFESTS.md to what becomes of manifests that
// projects publish: each container becomes a service of an OCI runtime, and the
// fields without effect are those of the page. The manifests lie beside the
// repository, in ../shared/manifests or LEGION_MANIFESTS.
func TestManifests(t *testing.T) {
	dir := os.Getenv("LEGION_MANIFESTS")
	if dir == "" {
		dir = "../../../shared/manifests"
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Skipf("there are no manifests in %s (LEGION_MANIFESTS)", dir)
	}
	var page strings.Builder
	page.WriteString("# Manifests of projects\n\n" +
		"What a node with an OCI runtime makes of the DaemonSets that these projects publish, unchanged. " +
		"Each container becomes one of its image; the fields named have no effect. " +
		"All of them use the node's network, whatever they say (docs/PODS.md). " +
		"Each is applied and runs, ready, with stand-ins for its images: test/pods/README.md. " +
		"This page is made by `go test ./internal/podspec -run TestManifests -rewrite`.\n\n" +
		"| manifest | DaemonSet | containers | fields without effect |\n| --- | --- | --- | --- |\n")
	for _, file := range files {
		for _, ds := range daemonSets(t, file) {
			rows(t, &page, filepath.Base(file), ds)
		}
	}
	const at = "../../docs/MANIFESTS.md"
	if *rewrite {
		if err := os.WriteFile(at, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(at); err != nil || string(text) != page.String() {
		t.Errorf("%s is not what becomes of the manifests (go test -rewrite): %v\n%s", at, err, page.String())
	}
}

// daemonSets reads a file's, and refuses fields that Kubernetes does not know.
func daemonSets(t *testing.T, file string) []*appsv1.DaemonSet {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []*appsv1.DaemonSet
	for r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return out
		}
		var kind metav1.TypeMeta
		if err == nil {
			err = yaml.Unmarshal(doc, &kind)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if kind.Kind != "DaemonSet" {
			continue
		}
		ds := &appsv1.DaemonSet{}
		if err := yaml.UnmarshalStrict(doc, ds); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		out = append(out, ds)
	}
}

func rows(t *testing.T, page *strings.Builder, file string, ds *appsv1.DaemonSet) {
	t.Helper()
	pod := &v1.Pod{ObjectMeta: *ds.Spec.Template.ObjectMeta.DeepCopy(), Spec: *ds.Spec.Template.Spec.DeepCopy()}
	pod.Name, pod.Namespace, pod.UID = ds.Name+"-x", "default", "u1"
	n := node
	n.Root, n.OCI, n.Images = true, &ocispec.Runtime{Program: "/usr/sbin/runc", State: "/run/oci"}, map[string]Pulled{}
	for _, c := range Containers(pod) {
		// An image that its project means to run as nobody says so by number.
		n.Images[c.Image] = Pulled{Image: &ocispec.Image{ID: "sha256:1", Layers: []string{"/l"}, Entrypoint: []string{"/standin"}, User: "65534"}}
	}
	g, report := Compile(pod, n, everything(pod))
	for _, b := range report.Blocked {
		t.Errorf("%s: %s cannot run: %s: %s", file, b.Container, b.Reason, b.Message)
	}
	if len(g.Services) != len(Containers(pod)) {
		t.Errorf("%s: %d services of %d containers", file, len(g.Services), len(Containers(pod)))
	}
	for i := range g.Services {
		if g.Services[i].Exec.Container == nil {
			t.Errorf("%s: %s is no container", file, g.Services[i].Name)
		}
	}
	var fields []string
	for _, path := range report.NotHonoured {
		if path = "`" + fieldNumber.ReplaceAllString(path, "[]") + "`"; !slices.Contains(fields, path) {
			fields = append(fields, path)
		}
	}
	slices.Sort(fields)
	what := strings.Join(fields, ", ")
	if what == "" {
		what = "none"
	}
	fmt.Fprintf(page, "| %s | %s | %d | %s |\n", file, ds.Name, len(g.Services), what)
}

// everything gives each object that a pod refers to, with the keys it wants.
func everything(pod *v1.Pod) Objects {
	out := Objects{}
	for _, ref := range References(pod) {
		out[ref] = &Object{Data: map[string][]byte{}}
	}
	add := func(kind ObjectKind, name, key string) {
		if o := out[Ref{kind, name}]; o != nil {
			o.Data[key] = []byte("x")
		}
	}
	for _, c := range Containers(pod) {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				add(Secret, e.ValueFrom.SecretKeyRef.Name, e.ValueFrom.SecretKeyRef.Key)
			}
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				add(ConfigMap, e.ValueFrom.ConfigMapKeyRef.Name, e.ValueFrom.ConfigMapKeyRef.Key)
			}
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.ConfigMap != nil {
			for _, item := range v.ConfigMap.Items {
				add(ConfigMap, v.ConfigMap.Name, item.Key)
			}
		}
		if v.Secret != nil {
			for _, item := range v.Secret.Items {
				add(Secret, v.Secret.SecretName, item.Key)
			}
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				for _, item := range s.ConfigMap.Items {
					add(ConfigMap, s.ConfigMap.Name, item.Key)
				}
			}
			if s.Secret != nil {
				for _, item := range s.Secret.Items {
					add(Secret, s.Secret.Name, item.Key)
				}
			}
		}
	}
	return out
}
