package agent

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
)

// fakeSigner is a cluster that answers requests for certificates: refuse, where
// set, at once; else with the status that answer gives at the nth look.
type fakeSigner struct {
	refuse *apierrors.StatusError
	answer func(look int, request []byte) certificatesv1.CertificateSigningRequestStatus

	made  certificatesv1.CertificateSigningRequest
	looks int
}

func (f *fakeSigner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	const path = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
	switch {
	case f.refuse != nil:
		status := f.refuse.ErrStatus
		status.APIVersion, status.Kind = "v1", "Status"
		w.WriteHeader(int(status.Code))
		_ = json.NewEncoder(w).Encode(status)
		return
	case r.Method == http.MethodPost && r.URL.Path == path:
		_ = json.NewDecoder(r.Body).Decode(&f.made)
		f.made.Name = "node-csr-1"
	case r.Method == http.MethodGet && r.URL.Path == path+"/node-csr-1":
		f.looks++
		f.made.Status = f.answer(f.looks, f.made.Spec.Request)
	default:
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(f.made)
}

func TestRequestCertificate(t *testing.T) {
	ca, err := pki.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	signed := func(request []byte) certificatesv1.CertificateSigningRequestStatus {
		cert, err := ca.SignRequest(request, "system:node:n1", "system:nodes")
		if err != nil {
			t.Error(err)
		}
		return certificatesv1.CertificateSigningRequestStatus{Certificate: cert}
	}
	anothers, err := os.ReadFile(other(t, ca))
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		cluster fakeSigner
		want    string // the error's end; empty is a certificate
		looks   int
	}{
		"approved later": {fakeSigner{answer: func(look int, request []byte) certificatesv1.CertificateSigningRequestStatus {
			if look < 3 {
				return certificatesv1.CertificateSigningRequestStatus{}
			}
			return signed(request)
		}}, "", 3},
		"denied": {fakeSigner{answer: func(int, []byte) certificatesv1.CertificateSigningRequestStatus {
			return certificatesv1.CertificateSigningRequestStatus{Conditions: []certificatesv1.CertificateSigningRequestCondition{
				{Type: certificatesv1.CertificateDenied, Status: v1.ConditionTrue, Reason: "Unknown", Message: "who is that"},
			}}
		}}, "request node-csr-1: Denied: Unknown: who is that", 1},
		"for another key": {fakeSigner{answer: func(int, []byte) certificatesv1.CertificateSigningRequestStatus {
			return certificatesv1.CertificateSigningRequestStatus{Certificate: anothers}
		}}, "a certificate for another key", 1},
		"may not ask": {fakeSigner{refuse: apierrors.NewForbidden(schema.GroupResource{Resource: "certificatesigningrequests"}, "", errors.New("not you"))}, "forbidden: not you", 0},
		"token over":  {fakeSigner{refuse: apierrors.NewUnauthorized("Unauthorized")}, "Unauthorized", 0},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(&test.cluster)
			defer server.Close()
			cert, err := requestCertificate(t.Context(), &rest.Config{Host: server.URL}, "n1", key, slog.New(slog.NewTextHandler(io.Discard, nil)))
			switch {
			case test.want == "" && err != nil, test.want != "" && (err == nil || !strings.HasSuffix(err.Error(), test.want)):
				t.Errorf("got %v, want %q", err, test.want)
			case err == nil && pki.Fits(cert, key.Public()) != nil:
				t.Error("the certificate does not fit")
			}
			spec := test.cluster.made.Spec
			if test.cluster.refuse == nil && (spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || len(spec.Usages) != 2) || test.cluster.looks != test.looks {
				t.Errorf("asked for %+v, looked %d times", spec, test.cluster.looks)
			}
		})
	}
}

// other is a certificate of the CA for a key of its own.
func other(t *testing.T, ca *pki.Authority) string {
	t.Helper()
	dir := t.TempDir()
	if err := ca.Client(dir, "other", "system:node:n1", "system:nodes"); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "other.crt")
}
