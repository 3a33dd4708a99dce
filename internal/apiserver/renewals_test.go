package apiserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/apis/coordination"
)

// testRenewals renews Leases: as a node does, the short way; and in all ways
// that are none, which go the general one.
func testRenewals(t *testing.T, f *fleet, direct kubernetes.Interface) {
	short := &headers{}
	protobuf := func(config *rest.Config) *rest.Config {
		config = rest.CopyConfig(config)
		config.ContentType, config.AcceptContentTypes = protobufType, protobufType+",application/json"
		config.Wrap(short.of)
		return config
	}
	_, node := f.join(t, "renewing")
	node = protobuf(node)
	leases := kubernetes.NewForConfigOrDie(node).CoordinationV1().Leases(corev1.NamespaceNodeLease)
	holder, seconds, now := "renewing", int32(40), metav1.NewMicroTime(time.Unix(1, 5000))
	created, err := leases.Create(t.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "renewing", Labels: map[string]string{"a": "b"}},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	current := created
	update := func(what string, wantShort bool, change func(*coordinationv1.Lease)) error {
		t.Helper()
		wanted := current.DeepCopy()
		later := metav1.NewMicroTime(wanted.Spec.RenewTime.Add(10 * time.Second))
		wanted.Spec.RenewTime = &later
		if change != nil {
			change(wanted)
		}
		got, err := leases.Update(t.Context(), wanted, metav1.UpdateOptions{})
		if short.was() != wantShort {
			t.Errorf("%s: by the short way: %v", what, !wantShort)
		}
		if err != nil {
			return err
		}
		read := must[*coordinationv1.Lease](t)(f.admin.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), "renewing", metav1.GetOptions{}))
		if diff := cmp.Diff(read, got); diff != "" {
			t.Errorf("%s: what was answered is not what was written:\n%s", what, diff)
		}
		if got.ResourceVersion == current.ResourceVersion {
			t.Errorf("%s: has no new version", what)
		}
		wanted.ResourceVersion, wanted.ManagedFields = got.ResourceVersion, got.ManagedFields
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s: is not what was wanted:\n%s", what, diff)
		}
		current = got
		return nil
	}
	for range 3 {
		if err := update("renewal", true, nil); err != nil {
			t.Fatal(err)
		}
	}
	another := "another"
	for what, change := range map[string]func(*coordinationv1.Lease){
		"another holder": func(l *coordinationv1.Lease) { l.Spec.HolderIdentity = &another },
		"a new label":    func(l *coordinationv1.Lease) { l.Labels["c"] = "d" },
	} {
		if err := update(what, false, change); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if err := update("after "+what, true, nil); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
	}
	if err := update("an old version", false, func(l *coordinationv1.Lease) { l.ResourceVersion = created.ResourceVersion }); !apierrors.IsConflict(err) {
		t.Errorf("an old version: %v", err)
	}
	if err := update("no version", false, func(l *coordinationv1.Lease) { l.ResourceVersion = "" }); !apierrors.IsInvalid(err) {
		t.Errorf("no version: %v", err)
	}
	if err := update("wrong", false, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32) }); !apierrors.IsInvalid(err) {
		t.Errorf("a duration of 0 s: %v", err)
	}
	if err := update("afterwards", true, nil); err != nil {
		t.Error(err)
	}
	// Behind this server's back, as another server writes.
	store := direct.(*directClient).direct.stores.Load().leases
	ctx := request.WithNamespace(t.Context(), corev1.NamespaceNodeLease)
	key := must[string](t)(store.KeyFunc(ctx, "renewing"))
	err = store.Storage.Storage.GuaranteedUpdate(ctx, key, &coordination.Lease{}, false, nil,
		func(old runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
			old.(*coordination.Lease).Labels["x"] = "y"
			return old, nil, nil
		}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := update("one that was changed", false, nil); !apierrors.IsConflict(err) {
		t.Errorf("a Lease that was changed: %v", err)
	}
	current = must[*coordinationv1.Lease](t)(leases.Get(t.Context(), "renewing", metav1.GetOptions{}))
	if err := update("one that this server has not written", false, nil); err != nil {
		t.Error(err)
	}
	if err := update("the changed one", true, nil); err != nil {
		t.Error(err)
	}
	_, stranger := f.join(t, "not-renewing")
	nobody, disguised := rest.CopyConfig(stranger), protobuf(f.config)
	nobody.CertData, nobody.KeyData = nil, nil
	disguised.Impersonate.UserName = "system:node:not-renewing"
	for what, config := range map[string]*rest.Config{
		"another node": protobuf(stranger), "nobody": protobuf(nobody), "an administrator as another": disguised,
	} {
		_, err := kubernetes.NewForConfigOrDie(config).CoordinationV1().Leases(current.Namespace).Update(t.Context(), current, metav1.UpdateOptions{})
		if !apierrors.IsForbidden(err) && !apierrors.IsUnauthorized(err) || short.was() {
			t.Errorf("%s renews the Lease: %v", what, err)
		}
	}
	if err := leases.Delete(t.Context(), "renewing", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := update("a deleted one", false, nil); !apierrors.IsConflict(err) {
		t.Errorf("a Lease that was deleted: %v", err)
	}
}

// headers looks at answers: the short way gives none an Audit-Id.
type headers struct{ last http.Header }

func (h *headers) of(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err == nil {
			h.last = response.Header
		}
		return response, err
	})
}

func (h *headers) was() bool { return h.last.Get("Audit-Id") == "" }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestLooksLikeRenewal(t *testing.T) {
	const path = leasePrefix + "kube-node-lease/leases/n"
	for what, change := range map[string]func(*http.Request){
		"":                  func(*http.Request) {},
		"with a timeout":    func(r *http.Request) { r.URL.RawQuery = "timeout=10s" },
		"!GET":              func(r *http.Request) { r.Method = http.MethodGet },
		"!a dry run":        func(r *http.Request) { r.URL.RawQuery = "dryRun=All" },
		"!a later dry run":  func(r *http.Request) { r.URL.RawQuery = "timeout=1s&dryRun=All" },
		"!JSON":             func(r *http.Request) { r.Header.Set("Content-Type", "application/json") },
		"!wants JSON":       func(r *http.Request) { r.Header.Set("Accept", "application/json") },
		"!wants a table":    func(r *http.Request) { r.Header.Set("Accept", protobufType+";as=Table,"+protobufType) },
		"!no certificate":   func(r *http.Request) { r.TLS.PeerCertificates = nil },
		"!a token":          func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") },
		"!as another group": func(r *http.Request) { r.Header.Set("Impersonate-Group", "g") },
		"!a part of it":     func(r *http.Request) { r.URL.Path += "/status" },
		"!no name":          func(r *http.Request) { r.URL.Path = leasePrefix + "kube-node-lease/leases/" },
		"!another kind":     func(r *http.Request) { r.URL.Path = "/api/v1/namespaces/a/pods/n" },
		"!long":             func(r *http.Request) { r.ContentLength = longestLease + 1 },
		"!of any length":    func(r *http.Request) { r.ContentLength = -1 },
	} {
		r := httptest.NewRequestWithContext(context.Background(), http.MethodPut, path, bytes.NewReader([]byte("x")))
		r.Header.Set("Content-Type", protobufType)
		r.Header.Set("Accept", protobufType+",application/json")
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}
		change(r)
		namespace, name, ok := looksLikeRenewal(r)
		if want := what == "" || what[0] != '!'; ok != want || ok && (namespace != "kube-node-lease" || name != "n") {
			t.Errorf("%q: %q %q %v", what, namespace, name, ok)
		}
	}
}

// What is taken for no renewal comes to the general way as it was sent.
func TestNoRenewalIsWhole(t *testing.T) {
	var got string
	h := &renewals{stores: func() *stores { return nil }, next: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = string(data)
	})}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodPut, "/", bytes.NewReader([]byte("body"))))
	if got != "body" {
		t.Errorf("%q", got)
	}
}

// FuzzLease: what was not encoded as a Lease is no Lease; what was stays it.
func FuzzLease(f *testing.F) {
	name := "n"
	data, err := encodeLease(&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &name}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(protobufMark)
	f.Fuzz(func(t *testing.T, data []byte) {
		lease, err := decodeLease(data)
		if err != nil {
			return
		}
		again, err := encodeLease(lease)
		if err != nil {
			return // not UTF-8
		}
		same, err := decodeLease(again)
		if diff := cmp.Diff(lease, same); err != nil || diff != "" {
			t.Fatalf("%v\n%s", err, diff)
		}
	})
}
