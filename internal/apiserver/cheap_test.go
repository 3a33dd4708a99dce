package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

func TestCertificateCache(t *testing.T) {
	now, asked := time.Unix(1000, 0), 0
	byWhat := "X509SHA256=1"
	cache := rememberCertificates(authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		asked++
		extra := map[string][]string{user.CredentialIDKey: {byWhat}}
		return &authenticator.Response{User: &user.DefaultInfo{Name: "me", Extra: extra}}, true, nil
	}))
	cache.now = func() time.Time { return now }
	ask := func(certificate string, until time.Time, header string) {
		t.Helper()
		r := &http.Request{Header: http.Header{}, TLS: &tls.ConnectionState{}}
		if certificate != "" {
			r.TLS.PeerCertificates = []*x509.Certificate{{Raw: []byte(certificate), NotAfter: until}}
		}
		if header != "" {
			r.Header.Set(header, "x")
		}
		if response, ok, err := cache.AuthenticateRequest(r); !ok || err != nil || response.User.GetName() != "me" {
			t.Errorf("answer: %v, %v, %v", response, ok, err)
		}
	}
	later := now.Add(time.Hour)
	for i, step := range []struct {
		certificate string
		until       time.Time
		header      string
		by          string
		wait        time.Duration
		asks        int
	}{
		{"a", later, "", "X509SHA256=1", 0, 1},
		{"a", later, "", "X509SHA256=1", 0, 0},
		{"a", later, "Authorization", "JTI=1", 0, 1},
		{"a", later, "Sec-Websocket-Protocol", "JTI=1", 0, 1},
		{"b", later, "", "JTI=1", 0, 1}, // not for its certificate: not remembered
		{"b", later, "", "X509SHA256=2", 0, 1},
		{"", later, "", "X509SHA256=1", 0, 1},
		{"a", later, "", "X509SHA256=1", 2 * certificateTime, 1},
		{"c", now.Add(2*certificateTime + time.Second), "", "X509SHA256=3", 0, 1},
		{"c", now.Add(2*certificateTime + time.Second), "", "X509SHA256=3", 2 * time.Second, 1}, // it ended meanwhile
	} {
		now, byWhat, asked = now.Add(step.wait), step.by, 0
		ask(step.certificate, step.until, step.header)
		if asked != step.asks {
			t.Errorf("step %d: asked %d times, want %d", i, asked, step.asks)
		}
	}
	if len(cache.known) != 2 {
		t.Errorf("%d certificates are remembered, want b and c", len(cache.known))
	}
}

func testLeaseFields(t *testing.T, f *fleet) {
	api := f.admin.CoordinationV1().Leases("kube-node-lease")
	holder := "a"
	lease, err := api.Create(t.Context(), &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "cheap"}, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holder = "b"
	lease.Spec.HolderIdentity = &holder
	if lease, err = api.Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(lease.ManagedFields) != 0 || *lease.Spec.HolderIdentity != "b" {
		t.Errorf("a lease that nobody applied to: %+v", lease)
	}
}
