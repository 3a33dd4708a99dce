package realnode

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/pki"
)

const (
	node   = "host1"
	nodeIP = "127.77.31.11"
	// token is a bootstrap token, as kubeadm makes them.
	tokenID, tokenSecret = "abcdef", "0123456789abcdef"
	limit                = 3 * time.Minute
)

// programs are all of them, in the order in which they end.
var programs = []string{"legion-agent", "legiond", "kube-controller-manager", "kube-scheduler", "kube-apiserver"}

// cluster is upstream's control plane, and one host with Legion on it.
type cluster struct {
	*testing.T
	dir    string
	config *rest.Config
	api    kubernetes.Interface
	host   *hostclient.Client
	port   int
	procs  map[string]*exec.Cmd
}

// newCluster starts the control plane as kubeadm does: one CA for all, clients
// by certificates, bootstrap tokens.
func newCluster(t *testing.T) *cluster {
	dir, err := os.MkdirTemp("", "realnode-") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{T: t, dir: dir, procs: map[string]*exec.Cmd{}}
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
		}
		for _, program := range programs {
			c.end(program, syscall.SIGTERM)
		}
		_ = os.RemoveAll(dir)
	})
	ca, err := pki.OpenAuthority(c.path("ca"))
	c.must(err)
	c.must(ca.Client(c.path("ca"), "apiserver", "kube-apiserver-kubelet-client", "system:masters"))
	c.must(os.MkdirAll(c.path("api"), 0o700))
	c.start("kube-apiserver", c.path("api"),
		"--client-ca-file="+c.path("ca/ca.crt"), "--enable-bootstrap-token-auth",
		"--kubelet-client-certificate="+c.path("ca/apiserver.crt"), "--kubelet-client-key="+c.path("ca/apiserver.key"),
		"--kubelet-preferred-address-types=InternalIP")
	for deadline := time.Now().Add(limit); ; {
		if c.config, err = clientcmd.BuildConfigFromFlags("", c.path("api/kubeconfig")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			c.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.config.QPS = -1
	c.api, err = kubernetes.NewForConfig(c.config)
	c.must(err)
	c.start("kube-controller-manager", "--kubeconfig="+c.path("api/kubeconfig"), "--leader-elect=false", "--secure-port=0",
		"--service-account-private-key-file="+c.path("api/accounts.key"), "--root-ca-file="+c.path("api/apiserver.crt"),
		"--cluster-signing-cert-file="+c.path("ca/ca.crt"), "--cluster-signing-key-file="+c.path("ca/ca.key"))
	c.start("kube-scheduler", "--kubeconfig="+c.path("api/kubeconfig"), "--leader-elect=false", "--secure-port=0")
	return c
}

// prepareHost makes what legiond and the agent are started with.
func (c *cluster) prepareHost() {
	c.must(os.MkdirAll(c.path("node/units"), 0o755))
	c.must(writeKubeconfig(c.path("bootstrap.kubeconfig"), c.config, tokenID+"."+tokenSecret))
	c.host = hostclient.New(c.path("node/host.sock"))
	listener, err := net.Listen("tcp", nodeIP+":0")
	c.must(err)
	c.port = listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()
}

func (c *cluster) startHost() { c.start("legiond", c.path("node")) }

// startAgent runs the agent, with a kubeconfig that is the node's, or with one
// by which it asks the cluster for its certificate unless it has one.
func (c *cluster) startAgent(flag, kubeconfig string) {
	c.start("legion-agent", flag, c.path(kubeconfig), "--client-ca-file", c.path("ca/ca.crt"),
		"--node", node, "--node-ip", nodeIP, "--kubelet-port", fmt.Sprint(c.port),
		"--dir", c.path("agent"), "--host-socket", c.path("node/host.sock"), "--oci-runtime", c.runtime(),
		"--eviction-hard", "nodefs.available<0,nodefs.inodesFree<0,memory.available<0,pid.available<0") // whatever the machine is short of
}

// runtime is what runs images: runc, where there is one and this is root.
func (c *cluster) runtime() string {
	if _, err := exec.LookPath("runc"); err != nil || os.Geteuid() != 0 {
		return "none"
	}
	return "runc"
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"="+program)
	return cmd
}

// start runs a program, with its log in the directory.
func (c *cluster) start(program string, args ...string) {
	c.Helper()
	log, err := os.OpenFile(c.path(program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	c.must(err)
	defer func() { _ = log.Close() }()
	cmd := c.command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.must(cmd.Start())
	c.procs[program] = cmd
}

// end signals a program and waits for its end.
func (c *cluster) end(program string, signal syscall.Signal) {
	cmd := c.procs[program]
	if cmd == nil {
		return
	}
	delete(c.procs, program)
	_ = cmd.Process.Signal(signal)
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	late.Stop()
}

// try runs the built-in kubectl as the administrator.
func (c *cluster) try(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := c.command("kubectl", args...)
	cmd.Env = append(cmd.Env, "KUBECONFIG="+c.path("api/kubeconfig"))
	cmd.Stdin = strings.NewReader(input)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	c.must(cmd.Start())
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("kubectl %q: %w: %s", args, err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// kubectl is try for what must work.
func (c *cluster) kubectl(args ...string) string {
	c.Helper()
	out, err := c.try("", args...)
	c.must(err)
	return strings.TrimSpace(out)
}

// apply gives the cluster a text of manifests.
func (c *cluster) apply(text string) {
	c.Helper()
	_, err := c.try(text, "apply", "-f", "-")
	c.must(err)
}

// asks the node's port itself, with a token, as one who trusts the CA that the
// node keeps for it.
func (c *cluster) asks(token, path string) (int, string) {
	c.Helper()
	own, err := os.ReadFile(c.path("agent/serving/ca.crt"))
	c.must(err)
	transport := &http.Transport{DisableKeepAlives: true}
	transport.TLSClientConfig, err = rest.TLSConfigFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{CAData: own}})
	c.must(err)
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("https://%s:%d%s", nodeIP, c.port, path), nil)
	c.must(err)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: transport, Timeout: limit}).Do(req)
	c.must(err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	c.must(err)
	return resp.StatusCode, strings.TrimSpace(string(text))
}

// explain shows what a person would look at.
func (c *cluster) explain() {
	for _, args := range [][]string{{"get", "nodes,pods,daemonsets,deployments,csr", "-A", "-o", "wide"}, {"get", "events", "-A"}, {"describe", "node", node}} {
		out, err := c.try("", args...)
		c.Logf("kubectl %q: %v\n%s", args, err, out)
	}
	for _, program := range programs {
		text, _ := os.ReadFile(c.path(program + ".log"))
		c.Logf("%s:\n%s", program, text[max(0, len(text)-3000):])
	}
}
