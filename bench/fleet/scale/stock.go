package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"
)

// stock is upstream's control plane: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler, a process each.
type stock struct {
	programs string // the directory of the four
	raised   bool   // without the limits that clients and server have by default
	dir      string
	plane    *plane
	running  []*exec.Cmd
}

// raise lifts the clients' limits (20 and 50 requests a second by default) and
// the server's (200 writing requests at a time).
var raise = map[string][]string{
	"kube-apiserver":          {"--max-requests-inflight=3000", "--max-mutating-requests-inflight=1500"},
	"kube-controller-manager": {"--kube-api-qps=10000", "--kube-api-burst=10000"},
	"kube-scheduler":          {"--kube-api-qps=10000", "--kube-api-burst=10000"},
}

// startStock starts the four and returns when the API server is ready.
func startStock(ctx context.Context, o options) (*plane, error) {
	programs, err := filepath.Abs(o.stock)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.scratch, "stock-")
	if err != nil {
		return nil, err
	}
	s := &stock{programs: programs, raised: o.raised, dir: dir, plane: &plane{log: filepath.Join(dir, "kube-apiserver.log")}}
	s.plane.close = sync.OnceFunc(s.stop)
	if err := s.start(ctx); err != nil {
		said := s.plane.said()
		s.plane.close()
		return nil, fmt.Errorf("cannot run upstream's control plane: %w\n%s", err, said)
	}
	return s.plane, nil
}

func (s *stock) start(ctx context.Context) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	kubeconfig, err := s.prepare(ports[0])
	if err != nil {
		return err
	}
	socket := "unix://" + s.path("etcd.sock")
	peers := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	err = s.run("etcd", "--data-dir="+s.path("etcd"), "--listen-client-urls="+socket, "--advertise-client-urls="+socket,
		"--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers,
		"--quota-backend-bytes=8589934592", "--log-level=error")
	if err != nil {
		return err
	}
	err = s.run("kube-apiserver", "--etcd-servers="+socket, "--cert-dir="+s.dir,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[0]),
		"--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.0.0.0/16",
		"--authorization-mode=Node,RBAC", "--token-auth-file="+s.path("tokens"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+s.path("accounts.key"), "--service-account-key-file="+s.path("accounts.key"))
	if err != nil {
		return err
	}
	if err := s.ready(ctx, kubeconfig); err != nil {
		return err
	}
	// Simulated nodes may renew late where the machine is busy.
	err = s.run("kube-controller-manager", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--service-account-private-key-file="+s.path("accounts.key"), "--root-ca-file="+s.path("apiserver.crt"),
		"--node-monitor-grace-period=10m")
	if err != nil {
		return err
	}
	return s.run("kube-scheduler", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0")
}

func (s *stock) path(name string) string { return filepath.Join(s.dir, name) }

// prepare writes keys, and a kubeconfig with all rights.
func (s *stock) prepare(port int) (kubeconfig string, err error) {
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return "", err
	}
	secret := make([]byte, 16)
	_, _ = rand.Read(secret) // it never fails
	token := hex.EncodeToString(secret)
	for name, data := range map[string]string{
		"accounts.key": string(key), "tokens": token + ",admin,admin,system:masters\n",
	} {
		if err := os.WriteFile(s.path(name), []byte(data), 0o600); err != nil {
			return "", err
		}
	}
	config := api.NewConfig()
	config.Clusters["stock"] = &api.Cluster{
		Server: fmt.Sprintf("https://127.0.0.1:%d", port), CertificateAuthority: s.path("apiserver.crt"),
	}
	config.AuthInfos["admin"] = &api.AuthInfo{Token: token}
	config.Contexts["stock"] = &api.Context{Cluster: "stock", AuthInfo: "admin"}
	config.CurrentContext = "stock"
	kubeconfig = s.path("kubeconfig")
	return kubeconfig, clientcmd.WriteToFile(*config, kubeconfig)
}

// run starts one of the programs, with its log in the directory.
func (s *stock) run(name string, args ...string) error {
	if s.raised {
		args = append(args, raise[name]...)
	}
	log, err := os.Create(s.path(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.programs, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w (build it with 'make stock')", err)
	}
	s.running = append(s.running, cmd)
	s.plane.pids = append(s.plane.pids, cmd.Process.Pid)
	return nil
}

func (s *stock) ready(ctx context.Context, kubeconfig string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		// Its certificate is not there at first.
		if config, err := clientcmd.BuildConfigFromFlags("", kubeconfig); err == nil && answers(ctx, config) {
			s.plane.config = config
			s.plane.unlimited()
			return nil
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return errors.New("kube-apiserver is not ready within two minutes")
		}
	}
}

func answers(ctx context.Context, config *rest.Config) bool {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return false
	}
	status := 0
	return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&status).Error() == nil && status == http.StatusOK
}

// stop ends the programs, etcd last.
func (s *stock) stop() {
	for i := len(s.running) - 1; i >= 0; i-- {
		cmd := s.running[i]
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
	}
	_ = os.RemoveAll(s.dir)
}

// freePorts returns ports of the loopback that nothing listened on just now.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// untaint waits until no node has a taint any more: upstream marks new nodes
// as not ready until its controller has looked at them.
func (m *measurement) untaint(ctx context.Context) error {
	for {
		list, err := m.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("cannot list the nodes: %w", err)
		}
		if !anyTaint(list.Items) {
			return nil
		}
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
	}
}

func anyTaint(nodes []corev1.Node) bool {
	for _, n := range nodes {
		if len(n.Spec.Taints) > 0 {
			return true
		}
	}
	return false
}
