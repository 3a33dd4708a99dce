package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/token"
)

func open(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestCertificatesAreKept(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Server(dir, "server", []string{"localhost", "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	before := read(t, filepath.Join(dir, "server.crt"))
	a := open(t, dir)
	if err := a.Server(dir, "server", []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if read(t, filepath.Join(dir, "server.crt")) != before {
		t.Error("a certificate that covers all names was replaced")
	}
	if err := a.Server(dir, "server", []string{"localhost", "10.1.2.3"}); err != nil {
		t.Fatal(err)
	}
	if read(t, filepath.Join(dir, "server.crt")) == before {
		t.Error("a certificate that lacks an address was kept")
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key: %v, %v", info.Mode(), err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir); err == nil || !strings.Contains(err.Error(), "ca.key") {
		t.Errorf("half a CA: %v", err)
	}
}

// serve answers joins as the server does, with the CA in dir.
func serve(t *testing.T, dir string) (*Authority, *httptest.Server) {
	t.Helper()
	a := open(t, dir)
	if err := a.Server(dir, "server", []string{"127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req JoinRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		cert, err := a.SignRequest([]byte(req.Request), "system:node:"+req.Node, "system:nodes")
		if req.Node == "refused" || err != nil {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(JoinRefusal{Message: "the token has ended"})
			return
		}
		_ = json.NewEncoder(w).Encode(JoinAnswer{Certificate: string(cert), CA: string(a.PEM)})
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return a, server
}

func TestJoin(t *testing.T) {
	a, server := serve(t, t.TempDir())
	known := token.Token{ID: "abcdef", Secret: "0123456789abcdef", CA: token.HashCA(a.Cert.Raw)}
	got, err := Join(t.Context(), server.URL, known.String(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(got.Certificate, got.Key); err != nil {
		t.Error(err)
	}
	cert, err := ParseCertificate(got.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if cert.Subject.CommonName != "system:node:n1" || cert.Subject.Organization[0] != "system:nodes" {
		t.Errorf("subject %v", cert.Subject)
	}
	var refused *RefusedError
	if _, err := Join(t.Context(), server.URL, known.String(), "refused"); !errors.As(err, &refused) {
		t.Errorf("a refusal: %v", err)
	}
	other := known
	other.CA = token.HashCA([]byte("another CA"))
	if _, err := Join(t.Context(), server.URL, other.String(), "n1"); err == nil || !strings.Contains(err.Error(), "another CA") {
		t.Errorf("a token of another CA: %v", err)
	}
}

// TestClockOff: a certificate out of its time is this host's clock that is off.
func TestClockOff(t *testing.T) {
	authority, server := serve(t, t.TempDir())
	for word, now := range map[string]time.Time{"a year ago": time.Now().AddDate(-1, 0, 0), "in thirty years": time.Now().AddDate(30, 0, 0)} {
		transport := &http.Transport{TLSClientConfig: pinned(token.HashCA(authority.Cert.Raw), func() time.Time { return now })}
		_, err := (&http.Client{Transport: transport}).Get(server.URL)
		transport.CloseIdleConnections()
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "the clock of this host is off: it says "+now.UTC().Format(time.RFC3339)[:13]) {
			t.Errorf("%s: %v", word, err)
		}
	}
}

// TestStore: what a node keeps is whole, and says where the server is.
func TestStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "agent")
	if labels, err := StoredLabels(dir); err != nil || labels != nil {
		t.Errorf("before: %v, %v", labels, err)
	}
	c := Credentials{Certificate: []byte("cert"), Key: []byte("key"), CA: []byte("ca"), Labels: map[string]string{"zone": "a"}}
	if err := c.Store(dir, "https://fleet.example:6443", "n1"); err != nil {
		t.Fatal(err)
	}
	if labels, err := StoredLabels(dir); err != nil || labels["zone"] != "a" {
		t.Errorf("labels: %v, %v", labels, err)
	}
	for name, want := range map[string]string{CertFile: "cert", KeyFile: "key", CAFile: "ca"} {
		if got := read(t, filepath.Join(dir, name)); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if text := read(t, filepath.Join(dir, ConfigFile)); !strings.Contains(text, `server: "https://fleet.example:6443"`) {
		t.Errorf("kubeconfig: %s", text)
	}
}
