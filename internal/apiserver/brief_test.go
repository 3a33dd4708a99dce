package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// testBriefly has nodes write about pods: each about its own, the brief way.
func testBriefly(t *testing.T, f *fleet) {
	brief := &headers{}
	client := func(node string) kubernetes.Interface {
		_, config := f.join(t, node)
		config.ContentType, config.AcceptContentTypes = protobufType, protobufType+",application/json"
		config.Wrap(brief.of)
		return kubernetes.NewForConfigOrDie(config)
	}
	own, other := client("brief"), client("not-brief")
	pod := samples()["plain"]
	pod.OwnerReferences, pod.Spec.NodeName = nil, "brief"
	made, err := f.admin.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := func(c kubernetes.Interface) error {
		_, err := c.CoreV1().Pods("default").Patch(t.Context(), made.Name, types.StrategicMergePatchType,
			[]byte(`{"status":{"phase":"Running"}}`), metav1.PatchOptions{}, "status")
		return err
	}
	remove := func(c kubernetes.Interface) error {
		return c.CoreV1().Pods("default").Delete(t.Context(), made.Name, *metav1.NewDeleteOptions(0))
	}
	for what, do := range map[string]func(kubernetes.Interface) error{"patches": patch, "deletes": remove} {
		if err := do(other); !apierrors.IsForbidden(err) {
			t.Errorf("another node %s the pod: %v", what, err)
		}
	}
	if err := patch(own); err != nil || !brief.was() {
		t.Errorf("its node cannot patch the pod's status (%v) the brief way (%v)", err, brief.was())
	}
	got, err := f.admin.CoreV1().Pods("default").Get(t.Context(), made.Name, metav1.GetOptions{})
	if err != nil || got.Status.Phase != corev1.PodRunning {
		t.Errorf("the status was not patched: %v, %v", got.Status, err)
	}
	if err := remove(own); err != nil || !brief.was() {
		t.Errorf("its node cannot delete the pod (%v) the brief way (%v)", err, brief.was())
	}
	if err := remove(own); !apierrors.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
	_, nobody := f.join(t, "nobody")
	nobody.CertData, nobody.KeyData = nil, nil
	if err := patch(kubernetes.NewForConfigOrDie(rest.CopyConfig(nobody))); !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) {
		t.Errorf("nobody patches a pod: %v", err)
	}
}

func TestLooksLikeNodesWrite(t *testing.T) {
	const pod = "/api/v1/namespaces/a/pods/p"
	for what, change := range map[string]func(*http.Request){
		"a status":   func(*http.Request) {},
		"a deletion": func(r *http.Request) { r.Method, r.URL.Path = http.MethodDelete, pod; kind(r, protobufType) },
		"!by JSON":   func(r *http.Request) { r.Method, r.URL.Path = http.MethodDelete, pod; kind(r, "application/json") },
		"!all pods": func(r *http.Request) {
			r.Method, r.URL.Path = http.MethodDelete, "/api/v1/namespaces/a/pods/"
			kind(r, protobufType)
		},
		"!the pod":       func(r *http.Request) { r.URL.Path = pod },
		"!another part":  func(r *http.Request) { r.URL.Path = pod + "/status/x" },
		"!an eviction":   func(r *http.Request) { r.Method, r.URL.Path = http.MethodPost, pod+"/eviction"; kind(r, protobufType) },
		"!merge patch":   func(r *http.Request) { kind(r, string(types.MergePatchType)) },
		"!a dry run":     func(r *http.Request) { r.URL.RawQuery = "dryRun=All" },
		"!a token":       func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") },
		"!as another":    func(r *http.Request) { r.Header.Set("Impersonate-Extra-A", "g") },
		"!wants JSON":    func(r *http.Request) { r.Header.Set("Accept", "*/*") },
		"!another kind":  func(r *http.Request) { r.URL.Path = "/api/v1/nodes/n/status" },
		"!unknown whose": func(r *http.Request) { r.TLS = nil },
	} {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodPatch, pod+"/status", bytes.NewReader([]byte("x")))
		kind(r, string(types.StrategicMergePatchType))
		r.Header.Set("Accept", protobufType+",application/json")
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}
		change(r)
		if ok := looksLikeNodesWrite(r); ok != (what[0] != '!') {
			t.Errorf("%q: %v", what, ok)
		}
	}
}

func kind(r *http.Request, contentType string) { r.Header.Set("Content-Type", contentType) }
