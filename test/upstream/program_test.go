package upstream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"

	"legion.dev/legion/internal/controller"
)

// asProgram is set where this binary is to run as legion-server.
const asProgram = "UPSTREAM_TEST_LEGION_SERVER"

// programs are processes of legion-server controller, one of which works.
type programs struct {
	kubeconfig string
	running    map[string]*exec.Cmd // by identity
	started    int
}

// legion are those whose controller is tested.
var legion *programs

// startPrograms gives the controller the rights that it says it needs, and no
// others, and starts two.
func startPrograms(ctx context.Context, config *rest.Config, dir string) (*programs, error) {
	manifests, err := controller.RBAC(false, metav1.NamespaceSystem)
	if err != nil {
		return nil, err
	}
	for doc := range strings.SplitSeq(strings.TrimPrefix(string(manifests), "---\n"), "---\n") {
		if err := apply(ctx, doc); err != nil {
			return nil, fmt.Errorf("cannot give the controller its rights: %w in:\n%s", err, doc)
		}
	}
	account := api.NewConfig()
	account.Clusters["upstream"] = &api.Cluster{Server: config.Host, CertificateAuthority: config.CAFile}
	account.AuthInfos["controller"] = &api.AuthInfo{
		Token:             config.BearerToken,
		Impersonate:       "system:serviceaccount:kube-system:" + controller.RoleName,
		ImpersonateGroups: []string{"system:serviceaccounts", "system:authenticated"},
	}
	account.Contexts["upstream"] = &api.Context{Cluster: "upstream", AuthInfo: "controller"}
	account.CurrentContext = "upstream"
	p := &programs{kubeconfig: filepath.Join(dir, "controller.kubeconfig"), running: map[string]*exec.Cmd{}}
	if err := clientcmd.WriteToFile(*account, p.kubeconfig); err != nil {
		return nil, err
	}
	return p, errors.Join(p.start(), p.start())
}

func apply(ctx context.Context, doc string) error {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
	if err != nil {
		return err
	}
	options := metav1.CreateOptions{}
	switch o := obj.(type) {
	case *corev1.ServiceAccount:
		_, err = client.CoreV1().ServiceAccounts(o.Namespace).Create(ctx, o, options)
	case *rbacv1.ClusterRole:
		_, err = client.RbacV1().ClusterRoles().Create(ctx, o, options)
	case *rbacv1.ClusterRoleBinding:
		_, err = client.RbacV1().ClusterRoleBindings().Create(ctx, o, options)
	case *rbacv1.Role:
		_, err = client.RbacV1().Roles(o.Namespace).Create(ctx, o, options)
	case *rbacv1.RoleBinding:
		_, err = client.RbacV1().RoleBindings(o.Namespace).Create(ctx, o, options)
	default:
		err = fmt.Errorf("a %T is not expected", obj)
	}
	return err
}

// start runs one more, which waits until the Lease is free.
func (p *programs) start() error {
	p.started++
	identity := fmt.Sprint("process-", p.started)
	cmd := exec.Command(os.Args[0], "controller", "--kubeconfig", p.kubeconfig, "--identity", identity,
		"--lease-duration", "8s", "--look-for-other", "1s")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.running[identity] = cmd
	return nil
}

// kill ends one without a word.
func (p *programs) kill(identity string) error {
	cmd := p.running[identity]
	if cmd == nil {
		return fmt.Errorf("there is no process %q", identity)
	}
	delete(p.running, identity)
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	_ = cmd.Wait() // that it was killed
	return nil
}

// stop asks all to end, and waits.
func (p *programs) stop() error {
	var errs []error
	for identity, cmd := range p.running {
		err := cmd.Process.Signal(syscall.SIGTERM)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("legion-server controller, %s: %w", identity, err))
		}
	}
	return errors.Join(errs...)
}

// leader is who holds the Lease.
func (f *field) leader() string {
	f.Helper()
	lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(f.ctx, controller.FieldManager, metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}

// The one that works is killed in the middle of an update; the other one goes
// on with it, within the budget. It runs before the tests that are parallel.
func TestLeaderIsKilled(t *testing.T) {
	takenOver(t, func(leader string) {
		if err := legion.kill(leader); err != nil {
			t.Fatal(err)
		}
	}, func() {})
	if err := legion.start(); err != nil {
		t.Fatal(err)
	}
}

// The one that works is stopped, as by a machine that sleeps, until another one
// works, and then goes on where it was: it may not write any more.
func TestLeaderIsStopped(t *testing.T) {
	signal := func(to string, s syscall.Signal) {
		t.Helper()
		if err := legion.running[to].Process.Signal(s); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
	}
	stopped := ""
	defer func() {
		if stopped != "" {
			signal(stopped, syscall.SIGCONT)
		}
	}()
	takenOver(t, func(leader string) {
		stopped = leader
		signal(leader, syscall.SIGSTOP)
	}, func() {
		signal(stopped, syscall.SIGCONT)
		stopped = ""
	})
}

// takenOver has one controller end in the middle of an update and looks how the
// other goes on; then is done as soon as it does.
func takenOver(t *testing.T, end func(leader string), then func()) {
	t.Helper()
	if legion == nil {
		t.Skip("of Legion's program only")
	}
	const nodes = 6
	f := openField(t)
	f.joinN(nodes)
	f.create(f.daemon(rolling(1, 0)))
	f.allReady(nodes)
	f.change(image("2"))
	f.until("one pod is replaced", func() bool {
		n, _ := f.of("2")
		return n > 0
	})
	before := f.leader()
	end(before)
	f.serving = true
	f.until("all pods are replaced", func() bool {
		if then != nil && f.leader() != before {
			then()
			then = nil
		}
		ready := 0
		for _, p := range f.cached() {
			if p.DeletionTimestamp == nil && podutil.IsPodReady(p) {
				ready++
			}
		}
		if ready < nodes-1 {
			f.Fatalf("%d of %d pods are ready, with maxUnavailable 1\n%s", ready, nodes, f.picture())
		}
		_, ready = f.of("2")
		return ready == nodes
	})
	if then != nil {
		t.Errorf("all pods were replaced, and still %s leads", before)
	}
}
