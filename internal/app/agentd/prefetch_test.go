package agentd

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// prefetch runs legion image prefetch.
func (f *fleet) prefetch(stdin string, args ...string) (stdout, stderr string, status int) {
	f.t.Helper()
	cmd := exec.CommandContext(f.ctx, os.Args[0], append([]string{"image", "prefetch", "--dir", f.path("server")}, args...)...)
	cmd.Env = append(os.Environ(), programVariable+"=legion-server", "KUBECONFIG=")
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// aheadSet is a DaemonSet of an image that wants a login.
func aheadSet(image string) string {
	return `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ahead}
spec:
  selector: {matchLabels: {app: ahead}}
  template:
    metadata: {labels: {app: ahead}}
    spec:
      imagePullSecrets: [{name: ahead}]
      containers: [{name: c, image: "` + image + `"}]
`
}

// prefetches: an image is on the node before anything is run from it, and where
// it cannot be had the registry's reason is told.
func (f *fleet) prefetches(t *testing.T, host string) {
	open := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	private := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "reader" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, `{"errors": [{"code": "UNAUTHORIZED", "message": "log in first"}]}`, http.StatusUnauthorized)
			return
		}
		open.ServeHTTP(w, r)
	}))
	t.Cleanup(private.Close)
	inside := httptest.NewServer(open)
	t.Cleanup(inside.Close)
	at := host + "/team/ahead:v1"
	image := standin(t, imagev1.Config{Entrypoint: []string{"/standin"}})
	push(t, at, image)
	push(t, strings.TrimPrefix(inside.URL, "http://")+"/app:v1", image)
	locked := strings.TrimPrefix(private.URL, "http://") + "/app:v1"

	for _, want := range []string{" pulled in ", " is there\n"} {
		out, errs, status := f.prefetch("", at)
		if status != 0 || !strings.HasPrefix(out, "n1: "+at+" ") || !strings.Contains(out, want) || !strings.HasSuffix(out, "1 of 1 nodes have all their images\n") {
			t.Errorf("status %d: %s%s, want %q", status, out, errs, want)
		}
	}
	f.container("ahead", at, func(p *v1.Pod) { p.Spec.Containers[0].ImagePullPolicy = v1.PullNever })
	f.remove("ahead", f.pod("ahead", ready))

	out, errs, status := f.prefetch("", host+"/none:v1")
	if status != 1 || !strings.Contains(errs, "n1: "+host+"/none:v1: ") || !strings.Contains(errs, "NAME_UNKNOWN") || !strings.HasPrefix(out, "0 of 1 nodes") {
		t.Errorf("an image that there is not: status %d: %s%s", status, out, errs)
	}
	if _, errs, status = f.prefetch(aheadSet(locked), "-f", "-"); status != 1 || !strings.Contains(errs, "UNAUTHORIZED") {
		t.Errorf("without the login: status %d: %s", status, errs)
	}
	secret := &v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "ahead"}, Type: v1.SecretTypeDockerConfigJson,
		StringData: map[string]string{v1.DockerConfigJsonKey: `{"auths": {"` + strings.TrimPrefix(private.URL, "http://") + `": {"username": "reader", "password": "secret"}}}`},
	}
	if _, err := f.api.CoreV1().Secrets("default").Create(f.ctx, secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	out, errs, status = f.prefetch(aheadSet(locked), "-f", "-", "-o", "json")
	var told struct {
		Nodes []struct {
			Node   string
			Images []struct {
				Image, ID string
				Pulled    bool
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &told); err != nil || status != 0 || len(told.Nodes) != 1 || told.Nodes[0].Node != "n1" ||
		len(told.Nodes[0].Images) != 1 || !told.Nodes[0].Images[0].Pulled || told.Nodes[0].Images[0].ID == "" {
		t.Errorf("with the login: status %d, %v: %s%s", status, err, out, errs)
	}
	if _, err := f.api.AppsV1().DaemonSets("default").Get(f.ctx, "ahead", metav1.GetOptions{}); err == nil {
		t.Error("the DaemonSet was made")
	}

	f.end("legion-agent", syscall.SIGTERM)
	if _, errs, status = f.prefetch("", at); status != 1 || !strings.Contains(errs, "n1: ") || !strings.Contains(errs, "no tunnel open") {
		t.Errorf("a node that is away: status %d: %s", status, errs)
	}
	f.agent("--oci-runtime", "runc")
}
