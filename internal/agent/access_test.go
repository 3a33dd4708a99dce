package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"

	"legion.dev/legion/internal/pki"
)

// fakeReviews know one token, and allow what is in its list.
type fakeReviews struct{ allowed []string }

func (f fakeReviews) Token(_ context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	switch token {
	case "good":
		return authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: "ann", Groups: []string{"ops"}}}, nil
	case "broken":
		return authenticationv1.TokenReviewStatus{}, errors.New("no answer")
	}
	return authenticationv1.TokenReviewStatus{}, nil
}

func (f fakeReviews) Access(_ context.Context, s authorizationv1.SubjectAccessReviewSpec) (authorizationv1.SubjectAccessReviewStatus, error) {
	a := s.ResourceAttributes
	if s.User == "nobody-knows" {
		return authorizationv1.SubjectAccessReviewStatus{}, errors.New("no answer")
	}
	asked := fmt.Sprintf("%s %v %s %s/%s/%s", s.User, s.Groups, a.Verb, a.Resource, a.Name, a.Subresource)
	return authorizationv1.SubjectAccessReviewStatus{Allowed: slices.Contains(f.allowed, asked)}, nil
}

// TestGate: who may reach a node's port, by the certificate or the token that
// they show, over real connections.
func TestGate(t *testing.T) {
	dir := t.TempDir()
	authority := func(name string) (*pki.Authority, string) {
		a, err := pki.OpenAuthority(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return a, filepath.Join(dir, name)
	}
	cluster, clusterDir := authority("cluster")
	stranger, strangerDir := authority("stranger")
	o := Options{Node: "n1", NodeIP: "127.0.0.1", Dir: filepath.Join(dir, "agent"), ClientCA: filepath.Join(clusterDir, "ca.crt")}
	config, err := portTLS(o)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Handler: &gate{"n1", fakeReviews{[]string{
		"apiserver [masters system:authenticated] create nodes/n1/proxy",
		"apiserver [masters system:authenticated] get nodes/n1/proxy",
		"ann [ops] get nodes/n1/stats",
		"ann [ops] get nodes/n1/metrics",
		"ann [ops] get nodes/n1/healthz",
	}}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "served") })}}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })

	own, err := os.ReadFile(filepath.Join(o.Dir, servingDir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(own)
	ask := func(method, path, token string, certs ...tls.Certificate) string {
		client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &append(certs, tls.Certificate{})[0], nil // whoever is asked for
			}},
		}}
		req, err := http.NewRequest(method, "https://"+listener.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			return "no answer: " + err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(text)))
	}
	cert := func(a *pki.Authority, dir, user string, groups ...string) tls.Certificate {
		if err := a.Client(dir, user, user, groups...); err != nil {
			t.Fatal(err)
		}
		c, err := tls.LoadX509KeyPair(filepath.Join(dir, user+".crt"), filepath.Join(dir, user+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	apiserver := cert(cluster, clusterDir, "apiserver", "masters")
	for _, test := range []struct {
		got, want string
	}{
		{ask("POST", "/exec/default/p/c", "", apiserver), "200 served"},
		{ask("GET", "/containerLogs/default/p/c", "", apiserver), "200 served"},
		{ask("GET", "/pods", "", apiserver), "200 served"}, // by proxy
		{ask("GET", "/stats/summary", "", apiserver), "403 Forbidden (user=apiserver, verb=get, resource=nodes, subresource(s)=[stats])"},
		{ask("GET", "/stats/summary", "good"), "200 served"},
		{ask("GET", "/metrics/resource", "good"), "200 served"},
		{ask("GET", "/healthz", "good"), "200 served"},
		{ask("GET", "/pods", "good"), "403 Forbidden (user=ann, verb=get, resource=nodes, subresource(s)=[pods proxy])"},
		{ask("POST", "/exec/default/p/c", "good"), "403 Forbidden (user=ann, verb=create, resource=nodes, subresource(s)=[proxy])"},
		{ask("GET", "/healthz", "bad"), "401 Unauthorized: the cluster does not know the token"},
		{ask("GET", "/healthz", "broken"), "401 Unauthorized: the cluster does not say whose token it is: no answer"},
		{ask("GET", "/healthz", ""), "401 Unauthorized: neither a client certificate nor a token was shown"},
		{ask("GET", "/healthz", "", cert(cluster, clusterDir, "nobody-knows")), "500 Authorization error: the cluster does not say what nobody-knows may do: no answer"},
	} {
		if test.got != test.want {
			t.Errorf("got %q, want %q", test.got, test.want)
		}
	}
	if got := ask("GET", "/pods", "", cert(stranger, strangerDir, "apiserver", "masters")); !strings.HasPrefix(got, "no answer: ") {
		t.Errorf("a certificate of another CA: %q", got)
	}
}

// TestPortFollowsItsFiles: another client CA counts from the next connection.
func TestPortFollowsItsFiles(t *testing.T) {
	dir := t.TempDir()
	o := Options{Node: "n1", NodeIP: "127.0.0.1", Dir: dir, ClientCA: filepath.Join(dir, "clients.crt")}
	if _, err := portTLS(o); err == nil || !strings.Contains(err.Error(), "clients.crt") {
		t.Errorf("without the CA: %v", err)
	}
	replace := func(name string) *x509.CertPool {
		a, err := pki.OpenAuthority(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(o.ClientCA, a.PEM, 0o600); err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(a.Cert)
		return pool
	}
	replace("first")
	config, err := portTLS(o)
	if err != nil {
		t.Fatal(err)
	}
	second := replace("second")
	now, err := config.GetConfigForClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !now.ClientCAs.Equal(second) {
		t.Error("the old CA counts still")
	}
}
