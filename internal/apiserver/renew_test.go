package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
)

// testRenewal: a node that shows its certificate gets another one, for the same
// key and name; nobody else does.
func testRenewal(t *testing.T, f *fleet) {
	made := must[token.Token](t)(CreateToken(t.Context(), f.admin, f.config.CAData, NewToken{Life: time.Hour}))
	got := must[pki.Credentials](t)(pki.Join(t.Context(), f.url, made.String(), "renewed"))
	dir := t.TempDir()
	if err := got.Store(dir, f.url, "renewed"); err != nil {
		t.Fatal(err)
	}
	shown := func(c rest.TLSClientConfig) *http.Client {
		return must[*http.Client](t)(rest.HTTPClientFor(&rest.Config{Host: f.url, TLSClientConfig: c}))
	}
	old, err := pki.StoredCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.Renew(t.Context(), shown(rest.TLSClientConfig{CertData: got.Certificate, KeyData: got.Key, CAData: got.CA}), f.url, dir); err != nil {
		t.Fatal(err)
	}
	next, err := pki.StoredCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if next.SerialNumber.Cmp(old.SerialNumber) == 0 || next.Subject.CommonName != "system:node:renewed" || next.NotAfter.Before(old.NotAfter) {
		t.Errorf("%s until %s, before until %s", next.Subject, next.NotAfter, old.NotAfter)
	}
	for name, c := range map[string]rest.TLSClientConfig{
		"nobody":            {CAData: got.CA},
		"the administrator": {CertData: f.config.CertData, KeyData: f.config.KeyData, CAData: got.CA},
	} {
		if err := pki.Renew(t.Context(), shown(c), f.url, dir); err == nil {
			t.Errorf("%s gets a node's certificate", name)
		}
	}
}

// testRemovedNodes: the certificate of a node that was deleted is refused, with
// the reason, until it has joined anew; a dry run removes nothing.
func testRemovedNodes(t *testing.T, f *fleet) {
	client, config := f.join(t, "removed")
	create := func(c *kubernetes.Clientset) error {
		_, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "removed"}}, metav1.CreateOptions{})
		return err
	}
	if err := create(client); err != nil {
		t.Fatal(err)
	}
	if err := f.admin.CoreV1().Nodes().Delete(t.Context(), "removed", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Get(t.Context(), "removed", metav1.GetOptions{}); err != nil {
		t.Fatalf("after a dry run: %v", err)
	}
	if err := f.admin.CoreV1().Nodes().Delete(t.Context(), "removed", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	const why = `node "removed" was removed from the fleet at `
	eventually(t, "the refusal of a removed node", func() error {
		_, err := client.CoreV1().Nodes().Get(t.Context(), "removed", metav1.GetOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "legion token create") {
			return fmt.Errorf("it is answered with: %w", err)
		}
		return nil
	})
	if err := create(client); err == nil {
		t.Error("it has registered itself again")
	}
	// With a bearer of no meaning beside the certificate it is no other.
	config.BearerToken = "x"
	if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Nodes().Get(t.Context(), "removed", metav1.GetOptions{}); err == nil {
		t.Error("it is let in with a token beside its certificate")
	}
	again, _ := f.join(t, "removed")
	if err := create(again); err != nil {
		t.Errorf("after joining anew: %v", err)
	}
	if _, err := client.CoreV1().Nodes().Get(t.Context(), "removed", metav1.GetOptions{}); err == nil {
		t.Error("the old certificate is good again")
	}
}

// sameShard is in one ConfigMap with node-a.
const sameShard = "host-133"

// TestNoteRemoved: what is noted stays for as long as a certificate could.
func TestNoteRemoved(t *testing.T) {
	ctx, client := context.Background(), fake.NewClientset()
	now := time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC)
	// These two are in one ConfigMap, whatever its name.
	if a, b := removedNodesName("node-a"), removedNodesName(sameShard); a != b {
		t.Fatalf("%s, %s", a, b)
	}
	for _, step := range []struct {
		node  string
		after time.Duration
		want  string
	}{
		{"node-a", 0, "map[node-a:2030-01-02T03:04:06Z]"},
		{sameShard, time.Hour, "map[" + sameShard + ":2030-01-02T04:04:06Z node-a:2030-01-02T03:04:06Z]"},
		{"node-a", time.Hour, "map[" + sameShard + ":2030-01-02T04:04:06Z node-a:2030-01-02T05:04:06Z]"},
		{"node-a", pki.LongestLife - time.Minute, "map[node-a:2031-01-02T05:03:06Z]"},
	} {
		now = now.Add(step.after)
		if err := noteRemoved(ctx, client, step.node, now); err != nil {
			t.Fatal(err)
		}
		held, err := client.CoreV1().ConfigMaps("kube-system").Get(ctx, removedNodesName(step.node), metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(held.Data); got != step.want {
			t.Errorf("%s, want %s", got, step.want)
		}
	}
}

// TestRemovedNodes: only a certificate from before the removal is refused, and a
// tunnel ends with the news of a removal.
func TestRemovedNodes(t *testing.T) {
	var dropped []string
	r := removedNodes{drop: func(node string) { dropped = append(dropped, node) }}
	r.told(removedNodesName("node-a"), map[string]string{sameShard: "2030-01-01T00:00:00Z"}, false)
	r.told(removedNodesName("node-a"), map[string]string{sameShard: "2030-01-01T00:00:00Z", "node-a": "2030-01-02T00:00:00Z", "odd": "?"}, true)
	if fmt.Sprint(dropped) != "[node-a]" {
		t.Errorf("dropped %v", dropped)
	}
	for _, test := range []struct {
		name, issued string
		want         authorizer.Decision
	}{
		{"system:node:node-a", "2030-01-01T23:59:59Z", authorizer.DecisionDeny},
		{"system:node:node-a", "2030-01-02T00:00:00Z", authorizer.DecisionNoOpinion},
		{"system:node:node-a", "rubbish", authorizer.DecisionDeny},
		{"system:node:node-a", "", authorizer.DecisionNoOpinion}, // by no certificate
		{"system:node:m", "2030-01-01T00:00:00Z", authorizer.DecisionNoOpinion},
		{"node-a", "2030-01-01T00:00:00Z", authorizer.DecisionNoOpinion},
	} {
		who := &user.DefaultInfo{Name: test.name}
		if test.issued != "" {
			who.Extra = map[string][]string{issuedKey: {test.issued}}
		}
		got, reason, err := r.Authorize(context.Background(), authorizer.AttributesRecord{User: who})
		if got != test.want || err != nil || (got == authorizer.DecisionDeny) != (reason != "") {
			t.Errorf("%s of %q: %v %q %v", test.name, test.issued, got, reason, err)
		}
	}
}
