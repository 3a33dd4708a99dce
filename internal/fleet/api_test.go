package fleet

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"legion.dev/legion/internal/pki"
)

// serveAPI is an API server of the test's and a client made from a kubeconfig.
func serveAPI(t *testing.T, h http.HandlerFunc) *api {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	ca, err := pki.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Client(dir, "admin", "admin", "system:masters"); err != nil {
		t.Fatal(err)
	}
	data := func(pemBytes []byte) string { return base64.StdEncoding.EncodeToString(pemBytes) }
	file := func(name string) string { return data(mustRead(t, filepath.Join(dir, name))) }
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: fleet
  cluster: {server: %q, certificate-authority-data: %s}
users:
- name: admin
  user: {client-certificate-data: %s, client-key-data: %s}
`, server.URL, data(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})), file("admin.crt"), file("admin.key"))
	path := filepath.Join(dir, "kubeconfig")
	if err := writeFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := openAPI(path)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestFollowGoesOnAfterABrokenWatch(t *testing.T) {
	var lists atomic.Int32
	object := func(name, ready string) string {
		return `{"metadata":{"name":"` + name + `"},"status":{"conditions":[{"type":"Ready","status":"` + ready + `"}]}}`
	}
	client := serveAPI(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") == "" {
			lists.Add(1)
			fmt.Fprintf(w, `{"metadata":{"resourceVersion":"5"},"items":[%s]}`, object("n1", "False"))
			return
		}
		if r.URL.Query().Get("resourceVersion") != "5" || r.URL.Query().Get("fieldSelector") != "a=b" {
			t.Errorf("watch asked with %s", r.URL.RawQuery)
		}
		if lists.Load() == 1 {
			return // the server restarts
		}
		fmt.Fprintf(w, `{"type":"ADDED","object":%s}`+"\n", object("n2", "True"))
		fmt.Fprintf(w, `{"type":"MODIFIED","object":%s}`+"\n", object("n1", "True"))
	})
	err := follow(t.Context(), client, "/api/v1/nodes?fieldSelector=a%3Db", nodeMeta, func(have map[string]*node) bool {
		return len(have) == 2 && isTrue(have["/n1"].Status.Conditions, "Ready")
	})
	if err != nil || lists.Load() != 2 {
		t.Errorf("got %v after %d lists", err, lists.Load())
	}
}

func nodeMeta(n *node) metadata { return n.Metadata }

func TestErrorsAreTheServersWords(t *testing.T) {
	client := serveAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": "nodes is forbidden"})
	})
	_, err := get[list[node]](t.Context(), client, "/api/v1/nodes")
	if err == nil || !strings.Contains(err.Error(), "nodes is forbidden") || !isStatus(err, http.StatusForbidden) {
		t.Errorf("got %v", err)
	}
	// A refusal is final: follow does not ask again for ever.
	if err := follow(t.Context(), client, "/api/v1/nodes", nodeMeta, func(map[string]*node) bool { return false }); !isStatus(err, http.StatusForbidden) {
		t.Errorf("got %v", err)
	}
}

func TestDeleteOfNothingIsNoError(t *testing.T) {
	client := serveAPI(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	if err := client.delete(t.Context(), "/api/v1/nodes/n1", nil); err != nil {
		t.Error(err)
	}
}
