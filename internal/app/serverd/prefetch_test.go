package serverd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/prefetch"
)

// someNodes answers for a fleet: n1 has the image, n2 pulls it, n3 cannot, n4 is
// away, n5 breaks off, n6's agent is old, n7 runs no images, and n8 has lost what
// it runs them with.
func someNodes(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, r *http.Request) {
		var list corev1.NodeList
		list.APIVersion, list.Kind = "v1", "NodeList"
		for i := 1; i <= 8; i++ {
			n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i)}}
			n.Status.RuntimeHandlers = []corev1.NodeRuntimeHandler{{Name: "host"}}
			if i != 7 {
				n.Status.RuntimeHandlers = append(n.Status.RuntimeHandlers, corev1.NodeRuntimeHandler{Name: "oci"})
			}
			if only := r.URL.Query().Get("labelSelector"); only == "" || only == "zone=a" && i <= 2 {
				list.Items = append(list.Items, n)
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("POST /api/v1/nodes/{node}/proxy/prefetch", func(w http.ResponseWriter, r *http.Request) {
		var asked prefetch.Request
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		if asked.Background {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		switch r.PathValue("node") {
		case "n4":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			away := apierrors.NewServiceUnavailable(`node "n4" has no tunnel open`).ErrStatus
			away.APIVersion, away.Kind = "v1", "Status"
			_ = json.NewEncoder(w).Encode(away)
			return
		case "n5":
			return
		case "n6":
			http.NotFound(w, r)
			return
		case "n8":
			http.Error(w, "the node runs no images", http.StatusNotImplemented)
			return
		}
		for _, want := range asked.Images {
			if !want.Always && want.Name != "example.org/app:2" {
				t.Errorf("%+v was asked for", want)
			}
			result := prefetch.Result{Image: want.Name, ID: "sha256:0123456789abcdef", Pulled: r.PathValue("node") == "n2", Seconds: 1.5}
			if r.PathValue("node") == "n3" {
				result = prefetch.Result{Image: want.Name, Error: "MANIFEST_UNKNOWN: there is none"}
			}
			_ = json.NewEncoder(w).Encode(result)
		}
	})
	return mux
}

// TestPrefetch: what each node has done is told, and what it could not with the
// reason.
func TestPrefetch(t *testing.T) {
	server := httptest.NewServer(someNodes(t))
	t.Cleanup(server.Close)
	config := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q}}]}`, server.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, string, error) {
		var out, errs bytes.Buffer
		c := command(&out, &errs)
		c.SetArgs(append([]string{"image", "prefetch", "--kubeconfig", config}, args...))
		err := c.Execute()
		return out.String(), errs.String(), err
	}
	out, errs, err := run("example.org/app:2", "-l", "zone=a")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines[:len(lines)-1]) // as they end
	want := []string{
		"n1: example.org/app:2 0123456789ab is there",
		"n2: example.org/app:2 0123456789ab pulled in 1.5s",
		"2 of 2 nodes have all their images",
	}
	if err != nil || !slices.Equal(lines, want) || errs != "" {
		t.Errorf("%v: %q, %q", err, lines, errs)
	}

	out, errs, err = run("example.org/app:2", "example.org/app")
	var status exitStatus
	if !errors.As(err, &status) || status != 1 || !strings.HasSuffix(out, "2 of 7 nodes have all their images\n") {
		t.Errorf("%v: %s", err, out)
	}
	for _, text := range []string{
		"n3: example.org/app:2: MANIFEST_UNKNOWN: there is none\n", "n3: example.org/app: MANIFEST_UNKNOWN",
		`n4: node "n4" has no tunnel open`, "n8: the node runs no images\n", "n5: it answered for 0 of 2 images only", "n6: its agent is older",
	} {
		if !strings.Contains(errs, text) {
			t.Errorf("does not say %q:\n%s", text, errs)
		}
	}

	out, errs, err = run("example.org/app:2", "-o", "json")
	var told prefetched
	if err == nil || errs != "" || json.Unmarshal([]byte(out), &told) != nil || told.Failed != 5 || len(told.Nodes) != 7 || told.Nodes[1].Images[0].ID != "sha256:0123456789abcdef" {
		t.Errorf("%v: %s %s", err, out, errs)
	}
	if out, _, err = run("example.org/app:2", "--wait=false"); err != nil || out != "7 of 7 nodes were asked to get their images\n" {
		t.Errorf("%v: %s", err, out)
	}
	if _, _, err = run("example.org/app:2", "-l", "zone=b"); err == nil || !strings.Contains(err.Error(), "no node is to have") {
		t.Errorf("no node: %v", err)
	}
	if _, _, err = run(); err == nil || !strings.Contains(err.Error(), "name either images") {
		t.Errorf("nothing: %v", err)
	}
}

func TestNewest(t *testing.T) {
	for name, want := range map[string]bool{
		"app": true, "app:latest": true, "host:5000/app": true, "host:5000/team/app:latest": true,
		"app:2": false, "host:5000/app:2": false, "app@sha256:0123": false, "app:latest@sha256:0123": false,
	} {
		if got := newest(name); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
