package realnode

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/pki"
	"legion.dev/legion/test/upstream/agnhost"
)

// TestRealNode: a Deployment and a DaemonSet run on the host and are updated by
// upstream's controllers and scheduler; kubectl reaches them.
func TestRealNode(t *testing.T) {
	c := newCluster(t)
	c.apply(asKubeadm)
	for _, manifest := range manifests(t) {
		c.apply(manifest)
	}
	c.prepareHost()
	c.startHost()
	c.startAgent("--bootstrap-kubeconfig", "bootstrap.kubeconfig")
	c.kubectl("wait", "--for=create", "node/"+node, "--timeout=3m")
	c.kubectl("wait", "--for=condition=Ready", "node/"+node, "--timeout=3m")
	c.registered()
	c.settled()
	c.says("1")
	c.step("streams", c.streams)
	c.step("rights", c.rights)
	c.step("strangers stay away", c.strangers)
	c.step("image", c.image)
	c.step("programs die", c.programsDie)
	c.step("update", c.update)
	c.step("renewal", c.renewal)
	c.step("removal", c.removal)
}

func (c *cluster) step(name string, part func()) {
	c.Helper()
	began := time.Now()
	part()
	c.Logf("%s: %s", name, time.Since(began).Round(time.Millisecond))
}

// asKubeadm is what kubeadm makes for nodes that are to join: a token, and who
// may have a certificate without being looked at.
const asKubeadm = `
{apiVersion: v1, kind: Secret, type: bootstrap.kubernetes.io/token,
 metadata: {name: bootstrap-token-` + tokenID + `, namespace: kube-system},
 stringData: {token-id: "` + tokenID + `", token-secret: "` + tokenSecret + `", usage-bootstrap-authentication: "true",
  auth-extra-groups: "system:bootstrappers:kubeadm:default-node-token"}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: bootstrap},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-bootstrapper"},
 subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:bootstrappers:kubeadm:default-node-token"}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: approve-first},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient"},
 subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:bootstrappers:kubeadm:default-node-token"}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: approve-next},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient"},
 subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:nodes"}]}
`

// manifests are those of docs/CLUSTER.md.
func manifests(t *testing.T) []string {
	page, err := os.ReadFile("../../../docs/CLUSTER.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, part := range strings.Split(string(page), "```yaml\n")[1:] {
		text, _, _ := strings.Cut(part, "```")
		out = append(out, text)
	}
	if len(out) != 3 {
		t.Fatalf("the page has %d manifests, want a RuntimeClass, a Deployment and a DaemonSet", len(out))
	}
	return out
}

// registered: the node is as the page says.
func (c *cluster) registered() {
	n, err := c.api.CoreV1().Nodes().Get(c.Context(), node, metav1.GetOptions{})
	c.must(err)
	want := corev1.Taint{Key: "legion.dev/host", Effect: corev1.TaintEffectNoSchedule}
	found := false
	for _, taint := range n.Spec.Taints {
		found = found || taint == want
	}
	if !found || n.Labels["legion.dev/host"] != "true" || int(n.Status.DaemonEndpoints.KubeletEndpoint.Port) != c.port {
		c.Errorf("the node: taints %v, labels %v, port %v", n.Spec.Taints, n.Labels, n.Status.DaemonEndpoints)
	}
}

// settled waits until both have all their pods, and no others.
func (c *cluster) settled() {
	c.Helper()
	c.kubectl("rollout", "status", "deployment/worker", "--timeout=3m")
	c.kubectl("rollout", "status", "daemonset/collector", "--timeout=3m")
}

// pods are the pods of an app that stay.
func (c *cluster) pods(app string) []corev1.Pod {
	c.Helper()
	list, err := c.api.CoreV1().Pods("default").List(c.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	c.must(err)
	var out []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			out = append(out, p)
		}
	}
	return out
}

// says: each process on the host is of the version, and its log comes through
// the API server.
func (c *cluster) says(version string) {
	c.Helper()
	for app, n := range map[string]int{"worker": 2, "collector": 1} {
		pods := c.pods(app)
		if len(pods) != n {
			c.Errorf("%s has %d pods, want %d", app, len(pods), n)
		}
		for i := range pods {
			want := app + " of version " + version
			if got := c.kubectl("logs", "-f", fmt.Sprintf("--limit-bytes=%d", len(want)), pods[i].Name); got != want {
				c.Errorf("pod %s says %q, want %q", pods[i].Name, got, want)
			}
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", c.pid(&pods[i])))
			if err != nil || !strings.Contains(string(env), "VERSION="+version+"\x00") {
				c.Errorf("the process of pod %s: %q, %v", pods[i].Name, env, err)
			}
		}
	}
}

// pid is the process of a pod on the host.
func (c *cluster) pid(p *corev1.Pod) int {
	c.Helper()
	g, err := c.host.Group(c.Context(), "pod-"+string(p.UID))
	c.must(err)
	if m := g.Status.Services[0].Main; m != nil && m.Exit == nil {
		return m.PID
	}
	c.Fatalf("pod %s has no process: %+v", p.Name, g.Status)
	return 0
}

func (c *cluster) streams() {
	if out := c.kubectl("exec", "daemonset/collector", "--", "sh", "-c", "echo in $VERSION"); out != "in 1" {
		c.Errorf("exec: %q", out)
	}
	if out, err := c.try("typed", "exec", "-i", "deployment/worker", "--", "cat"); out != "typed" || err != nil {
		c.Errorf("exec with input: %q, %v", out, err)
	}
	if _, err := c.try("", "exec", "deployment/worker", "--", "sh", "-c", "exit 7"); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		c.Errorf("exec of what fails: %v", err)
	}
}

// rights: the port is for those whom the cluster allows it, and the node has no
// more rights than a kubelet.
func (c *cluster) rights() {
	token := c.kubectl("create", "token", "default")
	if code, text := c.asks("nonsense", "/pods"); code != 401 {
		c.Errorf("an unknown token: %d %s", code, text)
	}
	if code, text := c.asks(token, "/pods"); code != 403 {
		c.Errorf("an account without rights: %d %s", code, text)
	}
	c.kubectl("create", "clusterrolebinding", "reads-nodes", "--clusterrole=system:kubelet-api-admin", "--serviceaccount=default:default")
	code, text := 0, ""
	for deadline := time.Now().Add(limit); code != 200 && time.Now().Before(deadline); { // the server's rules follow in a moment
		code, text = c.asks(token, "/pods")
	}
	if code != 200 || !strings.Contains(text, `"name":"worker-`) {
		c.Errorf("an account with rights: %d %s", code, text)
	}
	if code, text := c.asks(token, "/metrics/resource"); code != 200 || !strings.Contains(text, `container_memory_working_set_bytes{container="main",namespace="default",pod="collector-`) {
		c.Errorf("what metrics-server reads: %d %s", code, text)
	}
	c.kubectl("delete", "clusterrolebinding", "reads-nodes")
	for _, args := range [][]string{{"get", "secrets", "-A"}, {"delete", "deployment", "worker"}, {"label", "node", "other", "a=b"}} {
		if out, err := c.try("", append(args, "--kubeconfig", c.path("agent/kubeconfig"))...); err == nil || !strings.Contains(err.Error(), "orbidden") {
			c.Errorf("the node may %q: %q, %v", args, out, err)
		}
	}
}

// strangers: the cluster's scheduler keeps away what does not ask for the host.
func (c *cluster) strangers() {
	c.apply(`{apiVersion: v1, kind: Pod, metadata: {name: stranger}, spec: {containers: [{name: c, image: none}]}}`)
	c.kubectl("wait", "--for=condition=PodScheduled=False", "pod/stranger", "--timeout=3m")
	if out := c.kubectl("get", "pod", "stranger", "-o", `jsonpath={.status.conditions[?(@.type=="PodScheduled")].message}`); !strings.Contains(out, "untolerated taint") {
		c.Errorf("the stranger waits: %q", out)
	}
	c.kubectl("delete", "pod", "stranger")
}

// image: a pod without the class runs from its image, with the token of its
// account, where the host can run images.
func (c *cluster) image() {
	if c.runtime() == "none" {
		c.Log("no image is run: it needs root and runc")
		return
	}
	const name = "images.test/agnhost:1"
	archive := c.path("agnhost.tar")
	c.must(agnhost.Write(archive))
	file, err := os.Open(archive)
	c.must(err)
	defer func() { _ = file.Close() }()
	store, err := image.OpenHere(c.path("images"))
	c.must(err)
	_, err = store.Import(c.Context(), file, name)
	c.must(err)
	c.apply(`{apiVersion: v1, kind: Pod, metadata: {name: contained}, spec: {
 nodeSelector: {legion.dev/host: "true"}, tolerations: [{key: legion.dev/host, operator: Exists}],
 containers: [{name: c, image: "` + name + `", imagePullPolicy: Never}]}}`)
	c.kubectl("wait", "--for=condition=Ready", "pod/contained", "--timeout=3m")
	if out := c.kubectl("logs", "-f", "--limit-bytes=6", "contained"); out != "Paused" {
		c.Errorf("it says %q", out)
	}
	if out := c.kubectl("exec", "contained", "--", "sh", "-c", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo of $HOSTNAME; [ -e /usr ] || echo no host"); out != "defaultof contained\nno host" {
		c.Errorf("in the container: %q", out)
	}
	c.kubectl("delete", "pod", "contained", "--timeout=3m")
}

// programsDie: daemons live on; the agent takes them up again, now with the
// certificate it has as a kubeconfig of its own.
func (c *cluster) programsDie() {
	before := map[string]int{}
	for _, app := range []string{"worker", "collector"} {
		for _, p := range c.pods(app) {
			before[p.Name] = c.pid(&p)
		}
	}
	for _, program := range []string{"legion-agent", "legiond"} {
		c.end(program, syscall.SIGKILL)
	}
	c.must(os.Remove(c.path("bootstrap.kubeconfig")))
	c.startHost()
	c.startAgent("--kubeconfig", "agent/kubeconfig")
	for name, pid := range before {
		// That the agent answers for it says that it has taken it up.
		for deadline := time.Now().Add(limit); ; {
			out, err := c.try("", "exec", name, "--", "sh", "-c", "echo alive")
			if strings.TrimSpace(out) == "alive" {
				break
			}
			if time.Now().After(deadline) {
				c.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond) // the port is not open yet, or legiond has not answered
		}
		p, err := c.api.CoreV1().Pods("default").Get(c.Context(), name, metav1.GetOptions{})
		c.must(err)
		if now := c.pid(p); now != pid || p.Status.ContainerStatuses[0].RestartCount != 0 {
			c.Errorf("pod %s was process %d and is %d, restarted %d times", name, pid, now, p.Status.ContainerStatuses[0].RestartCount)
		}
	}
}

func (c *cluster) update() {
	c.kubectl("set", "env", "deployment/worker", "daemonset/collector", "VERSION=2")
	c.settled()
	c.says("2")
}

// renewal: a certificate near its end is followed by the next one, which the
// cluster signs because the node itself asks.
func (c *cluster) renewal() {
	c.end("legion-agent", syscall.SIGTERM)
	key, err := pki.StoredKey(c.path("agent"))
	c.must(err)
	ca, err := pki.OpenAuthority(c.path("ca"))
	c.must(err)
	signer, err := os.ReadFile(c.path("ca/ca.key"))
	c.must(err)
	block, _ := pem.Decode(signer)
	caKey, err := x509.ParseECPrivateKey(block.Bytes)
	c.must(err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * time.Minute),
		Subject:  pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Cert, key.Public(), caKey)
	c.must(err)
	c.must(pki.WriteFile(c.path("agent/"+pki.CertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	before, err := c.api.CertificatesV1().CertificateSigningRequests().List(c.Context(), metav1.ListOptions{})
	c.must(err)
	w, err := c.api.CertificatesV1().CertificateSigningRequests().Watch(c.Context(), metav1.ListOptions{ResourceVersion: before.ResourceVersion})
	c.must(err)
	defer w.Stop()
	c.startAgent("--bootstrap-kubeconfig", "bootstrap.kubeconfig") // that file is gone
	late := time.After(limit)
	for signed := false; !signed; {
		select {
		case e := <-w.ResultChan():
			r, ok := e.Object.(*certificatesv1.CertificateSigningRequest)
			signed = ok && e.Type != watch.Deleted && r.Spec.Username == "system:node:"+node && len(r.Status.Certificate) > 0
		case <-late:
			c.Fatal("the cluster has signed nothing")
		}
	}
	for deadline := time.Now().Add(limit); ; {
		cert, err := pki.StoredCertificate(c.path("agent"))
		if err == nil && time.Until(cert.NotAfter) > 24*time.Hour {
			break
		}
		if time.Now().After(deadline) {
			c.Fatalf("the certificate stays: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.kubectl("exec", "daemonset/collector", "--", "true")
}

// removal: what is deleted leaves nothing on the host.
func (c *cluster) removal() {
	c.kubectl("delete", "deployment/worker", "daemonset/collector", "--cascade=foreground", "--timeout=3m")
	for deadline := time.Now().Add(limit); ; {
		groups, err := c.host.Groups(c.Context())
		c.must(err)
		left := 0
		for _, g := range groups {
			if strings.HasPrefix(g.Spec.Name, "pod-") {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("%d pods are left on the host", left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
