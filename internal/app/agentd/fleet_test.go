package agentd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/internal/app/hostd"
	"legion.dev/legion/internal/app/serverd"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
)

// The tests run one node and a server as processes of their own: this binary,
// told by its environment which program to be.
const programVariable = "LEGION_TEST_PROGRAM"

func TestMain(m *testing.M) {
	switch os.Getenv(programVariable) {
	case "":
		os.Exit(m.Run())
	case "legiond":
		o := hostd.Options{Dir: os.Args[1], Units: []string{filepath.Join(os.Args[1], "units")}}
		if err := hostd.Run(context.Background(), o, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, "legiond:", err)
			os.Exit(1)
		}
	case "legion-server":
		os.Exit(serverd.Main(os.Args[1:]))
	case "legion-agent":
		os.Exit(Main(os.Args[1:], os.Stderr))
	}
	os.Exit(0)
}

// limit is how long anything may take.
const limit = 2 * time.Minute

// fleet is a server and one node, in processes that can be killed.
type fleet struct {
	t     testing.TB
	ctx   context.Context
	dir   string
	url   string
	api   *kubernetes.Clientset
	host  *hostclient.Client
	procs map[string]*exec.Cmd
}

func newFleet(t testing.TB) *fleet {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*limit)
	f := &fleet{t: t, ctx: ctx, dir: t.TempDir(), procs: map[string]*exec.Cmd{}}
	t.Cleanup(func() {
		if t.Failed() {
			f.explain()
		}
		f.end("legion-agent", syscall.SIGTERM)
		f.end("legiond", syscall.SIGTERM)
		f.end("legion-server", syscall.SIGTERM)
		cancel()
		if t.Failed() {
			for _, name := range []string{"legion-agent", "legiond", "legion-server"} {
				text, _ := os.ReadFile(f.path(name + ".log"))
				t.Logf("%s:\n%s", name, text[max(0, len(text)-4000):])
			}
		}
	})
	f.host = hostclient.New(f.path("node/host.sock"))
	f.legiond()
	f.server()
	return f
}

// sub runs a part of the test.
func (f *fleet) sub(name string, part func(t *testing.T)) {
	whole := f.t.(*testing.T)
	defer func() { f.t = whole }()
	whole.Run(name, func(t *testing.T) {
		f.t = t
		part(t)
	})
}

func (f *fleet) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fleet) legiond() { f.start("legiond", f.path("node")) }

// server starts the server, on the port it had before.
func (f *fleet) server() {
	port := "0"
	if f.url != "" {
		_, port, _ = net.SplitHostPort(strings.TrimPrefix(f.url, "https://"))
	}
	f.start("legion-server", "--dir", f.path("server"), "--port", port)
	config, err := clientcmd.BuildConfigFromFlags("", f.path("server/admin.kubeconfig"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.url, config.QPS = config.Host, -1
	if f.api, err = kubernetes.NewForConfig(config); err != nil {
		f.t.Fatal(err)
	}
}

// agent starts the agent with more arguments.
func (f *fleet) agent(args ...string) { f.start("legion-agent", f.agentArgs(args...)...) }

func (f *fleet) agentArgs(args ...string) []string {
	return append([]string{
		"--node", "n1", "--host-socket", f.path("node/host.sock"), "--server", f.url,
		"--dir", f.path("agent"), "--node-ip", "127.77.9.11", "--labels", "zone=a",
		"--oci-runtime", "none", // whatever the machine has; a test of images says otherwise
	}, args...)
}

// token makes a join token.
func (f *fleet) token(args ...string) string {
	f.t.Helper()
	cmd := exec.CommandContext(f.ctx, os.Args[0], append([]string{"token", "create", "--dir", f.path("server")}, args...)...)
	cmd.Env = append(os.Environ(), programVariable+"=legion-server")
	out, err := cmd.Output()
	if err != nil {
		f.t.Fatalf("token create: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// start runs a program until it says READY=1.
func (f *fleet) start(program string, args ...string) {
	f.t.Helper()
	if err := os.MkdirAll(f.path("node/units"), 0o755); err != nil {
		f.t.Fatal(err)
	}
	// A test's directory may be too long for a socket's name.
	socket := fmt.Sprintf("@legion-test-%d-%s", os.Getpid(), program)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	logs, err := os.OpenFile(f.path(program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = logs.Close() }()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), programVariable+"="+program, "NOTIFY_SOCKET="+socket)
	cmd.Stdout, cmd.Stderr = logs, logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.procs[program] = cmd
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	for buf := make([]byte, 1024); ; {
		n, err := conn.Read(buf)
		if err != nil {
			f.t.Fatalf("%s did not become ready: %v", program, err)
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			return
		}
	}
}

// end signals a program and waits for its end.
func (f *fleet) end(program string, signal syscall.Signal) {
	cmd := f.procs[program]
	if cmd == nil {
		return
	}
	delete(f.procs, program)
	_ = cmd.Process.Signal(signal)
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	late.Stop()
}

// node waits until the node is as cond says.
func (f *fleet) node(cond func(*v1.Node) bool) *v1.Node {
	f.t.Helper()
	w, err := f.api.CoreV1().Nodes().Watch(f.ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "n1").String()})
	return await(f.t, w, err, cond)
}

// pod waits until a pod is as cond says.
func (f *fleet) pod(name string, cond func(*v1.Pod) bool) *v1.Pod {
	f.t.Helper()
	w, err := f.watch(name)
	return await(f.t, w, err, cond)
}

// watch tells of a pod, if there is one.
func (f *fleet) watch(name string) (watch.Interface, error) {
	return f.api.CoreV1().Pods("default").Watch(f.ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
}

// gone waits until a pod has gone, which end brings about: it may be gone at
// once, of which a watch that is opened later does not tell.
func (f *fleet) gone(name string, end func()) {
	f.t.Helper()
	w, err := f.watch(name)
	if err == nil {
		end()
	}
	await(f.t, w, err, func(p *v1.Pod) bool { return p == nil })
}

// delete deletes a pod, and waits until it has gone.
func (f *fleet) delete(name string) {
	f.t.Helper()
	f.gone(name, func() {
		if err := f.api.CoreV1().Pods("default").Delete(f.ctx, name, metav1.DeleteOptions{}); err != nil {
			f.t.Fatal(err)
		}
	})
}

// await waits for an object for which cond holds; it is asked with nil when the
// object has been deleted.
func await[T any](t testing.TB, w watch.Interface, err error, cond func(*T) bool) *T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	deadline := time.After(limit)
	var last any
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch ended; last: %+v", last)
			}
			object, ok := any(e.Object).(*T)
			if !ok {
				t.Fatalf("the watch brought %+v", e.Object)
			}
			if e.Type == watch.Deleted {
				object = nil
			}
			last = e.Object
			if cond(object) {
				return object
			}
		case <-deadline:
			t.Fatalf("not within %s; last: %+v", limit, last)
		}
	}
}

func ready(p *v1.Pod) bool { return p != nil && podutils.IsPodReady(p) }

// create makes a pod of one container for the node.
func (f *fleet) create(name string, change func(*v1.Pod), command ...string) *v1.Pod {
	f.t.Helper()
	class, grace := "host", int64(2)
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: v1.PodSpec{
			NodeName: "n1", RuntimeClassName: &class, TerminationGracePeriodSeconds: &grace,
			Containers: []v1.Container{{Name: "c", Image: "none", Command: command}},
		},
	}
	if change != nil {
		change(pod)
	}
	pod, err := f.api.CoreV1().Pods("default").Create(f.ctx, pod, metav1.CreateOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return pod
}

// log reads a pod's log.
func (f *fleet) log(name string, o v1.PodLogOptions) (string, error) {
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	stream, err := f.stream(ctx, name, o)
	if err != nil {
		return "", err
	}
	defer func() { _ = stream.Close() }()
	text, err := io.ReadAll(stream)
	return string(text), err
}

// stream opens a pod's log. An agent whose server was away is heard of before
// its tunnel is up again.
func (f *fleet) stream(ctx context.Context, name string, o v1.PodLogOptions) (io.ReadCloser, error) {
	for {
		stream, err := f.api.CoreV1().Pods("default").GetLogs(name, &o).Stream(ctx)
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "has no tunnel open") {
			return stream, err
		}
	}
}

// pid is the process of a pod's container on the host.
func (f *fleet) pid(p *v1.Pod) int {
	f.t.Helper()
	g, err := f.host.Group(f.ctx, "pod-"+string(p.UID))
	if err != nil {
		f.t.Fatal(err)
	}
	if m := g.Status.Services[0].Main; m != nil && m.Exit == nil {
		return m.PID
	}
	f.t.Fatalf("pod %s has no process: %+v", p.Name, g.Status)
	return 0
}

// awaitRemoved waits until the host has removed a group.
func (f *fleet) awaitRemoved(name string) error {
	removed := errors.New("removed")
	seen := false
	err := f.host.Watch(f.ctx, func(e hostapi.Event) error {
		seen = seen || e.Name == name
		if (e.Type == hostapi.Removed && e.Name == name) || (e.Type == hostapi.Synced && !seen) {
			return removed
		}
		return nil
	})
	if errors.Is(err, removed) {
		return nil
	}
	return err
}

// explain tells what became of each group.
func (f *fleet) explain() {
	groups, err := f.host.Groups(context.Background())
	if err != nil {
		f.t.Log(err)
	}
	for _, g := range groups {
		e, err := f.host.Explain(context.Background(), g.Spec.Name)
		if err != nil {
			f.t.Log(err)
			continue
		}
		for _, h := range e.History {
			f.t.Logf("%s %s run %d: %s to %s: %s", h.At.Format("05.000000"), g.Spec.Description, h.Run, h.From, h.To, h.Reason)
		}
	}
}
