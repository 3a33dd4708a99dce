package agentd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kubectl is a program that is kubectl, with what makes it so.
type kubectl struct {
	path string
	args []string
	env  []string
}

// kubectls are the one that is built in and, where there is one, the machine's.
func (f *fleet) kubectls() map[string]kubectl {
	config := "KUBECONFIG=" + f.path("server/admin.kubeconfig")
	all := map[string]kubectl{"built-in": {os.Args[0], []string{"kubectl"}, []string{config, programVariable + "=legion-server"}}}
	if path, err := exec.LookPath("kubectl"); err == nil {
		all["of the machine"] = kubectl{path, nil, []string{config}}
	}
	return all
}

func (f *fleet) command(ctx context.Context, k kubectl, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.path, append(k.args, args...)...)
	cmd.Env = append(os.Environ(), k.env...)
	return cmd
}

// run gives a command an input and returns what it writes and its status.
func (f *fleet) run(k kubectl, input io.Reader, args ...string) (stdout, stderr string, status int) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	cmd := f.command(ctx, k, args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		f.t.Fatalf("kubectl %q: %v, %v: %s", args, err, ctx.Err(), errOut.String())
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// TestStreams is kubectl's exec, cp, attach and port-forward.
func TestStreams(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server, a legiond and an agent")
	}
	f := newFleet(t)
	f.agent("--token", f.token())
	f.node(nodeReady)
	f.create("box", func(p *v1.Pod) {
		named(p)
		p.Labels = map[string]string{"stays": "yes"}
		p.Spec.Containers[0].WorkingDir = f.dir
	}, "sh", "-c", forever)
	f.pod("box", ready)
	for name, k := range f.kubectls() {
		f.sub("exec, kubectl "+name, func(t *testing.T) { f.exec(t, k) })
		f.sub("terminal, kubectl "+name, func(t *testing.T) { f.terminal(t, k) })
		f.sub("port-forward, kubectl "+name, func(t *testing.T) { f.forward(t, k) })
	}
	k := f.kubectls()["built-in"]
	f.sub("cp", func(t *testing.T) { f.copies(t, k) })
	f.sub("attach", func(t *testing.T) { f.attach(t, k) })
	f.sub("hang up", func(t *testing.T) { f.hangUp(t, k) })
	f.create("busy", func(p *v1.Pod) { p.Labels = map[string]string{"work": "hard"} }, "sh", "-c", "while :; do :; done")
	f.pod("busy", ready)
	for name, k := range f.kubectls() {
		f.sub("top, kubectl "+name, func(t *testing.T) { f.top(t, k) })
	}
	f.sub("drain", func(t *testing.T) { f.drain(t, k) })
	f.sub("rights", func(t *testing.T) { f.rights(t, k) })
}

func (f *fleet) exec(t *testing.T, k kubectl) {
	for _, test := range []struct {
		args           string
		script         string
		stdout, stderr string
		status         int
	}{
		{"", `echo $NAME in $(pwd); echo oops >&2`, "box in " + f.dir + "\n", "oops\n", 0},
		{"-c c", `exit 42`, "", "exit code 42", 42},
		{"", `kill -9 $$`, "", "exit code 137", 137},
		{"-i", `cat; echo done`, "input\ndone\n", "", 0},
		{"-c other", `true`, "", "container other is not valid for pod box", 1},
	} {
		args := append(append([]string{"exec", "box"}, strings.Fields(test.args)...), "--", "sh", "-c", test.script)
		stdout, stderr, status := f.run(k, strings.NewReader("input\n"), args...)
		if stdout != test.stdout || status != test.status || !strings.Contains(stderr, test.stderr) {
			t.Errorf("%s %q: status %d, %q, %q, want %+v", test.args, test.script, status, stdout, stderr, test)
		}
	}
	if _, stderr, status := f.run(k, nil, "exec", "box", "--", "no-such-command"); status != 1 || !strings.Contains(stderr, `find command "no-such-command"`) {
		t.Errorf("no such command: %d, %q", status, stderr)
	}
	// Nothing is lost on the way, in either direction.
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	if stdout, stderr, status := f.run(k, bytes.NewReader(data), "exec", "-i", "box", "--", "cat"); status != 0 || stdout != string(data) {
		t.Errorf("of %d bytes %d come back: status %d, %q", len(data), len(stdout), status, stderr)
	}
	// A process that it leaves behind holds nothing up.
	if stdout, _, status := f.run(k, nil, "exec", "box", "--", "sh", "-c", "sleep 1000 & echo left"); status != 0 || stdout != "left\n" {
		t.Errorf("with a process left: status %d, %q", status, stdout)
	}
}

// terminal: a terminal has the size of the client's, and follows it.
func (f *fleet) terminal(t *testing.T, k kubectl) {
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	cmd := f.command(ctx, k, "exec", "-it", "box", "--", "sh", "-c",
		`test -t 0 && test -t 1 && echo term $TERM; while [ "$(stty size)" != "33 77" ]; do sleep 0.05; done; echo first; while [ "$(stty size)" = "33 77" ]; do sleep 0.05; done; echo now $(stty size); read x </dev/tty; echo "<$x>"; exit 7`)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	seen := ""
	lines := bufio.NewScanner(tty)
	expect := func(want string) {
		t.Helper()
		for lines.Scan() {
			seen += lines.Text() + "\n"
			if strings.TrimSpace(lines.Text()) == want {
				return
			}
		}
		t.Fatalf("no line %q, but %q", want, seen)
	}
	expect("term xterm")
	expect("first")
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 20, Cols: 50}); err != nil {
		t.Fatal(err)
	}
	expect("now 20 50")
	if _, err := io.WriteString(tty, "typed\n"); err != nil {
		t.Fatal(err)
	}
	expect("<typed>")
	for lines.Scan() {
		seen += lines.Text() + "\n"
	}
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("status %d: %q", cmd.ProcessState.ExitCode(), seen)
	}
}

// hangUp: a command does not outlive the kubectl that asked for it.
func (f *fleet) hangUp(t *testing.T, k kubectl) {
	cmd := f.command(f.ctx, k, "exec", "box", "--", "sh", "-c", "echo $$; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit/time.Millisecond)); n != 1 {
		t.Errorf("the command runs on: %v", err)
	}
}

// rights: who may not exec cannot, and no node can.
func (f *fleet) rights(t *testing.T, k kubectl) {
	_, stderr, status := f.run(k, nil, "exec", "--as=alice", "box", "--", "true")
	if status != 1 || !strings.Contains(stderr, `User "alice" cannot`) {
		t.Errorf("a stranger: %d, %s", status, stderr)
	}
	_, stderr, status = f.run(k, nil, "exec", "--kubeconfig", f.path("agent/kubeconfig"), "box", "--", "true")
	if status != 1 || !strings.Contains(stderr, `User "system:node:n1" cannot`) {
		t.Errorf("a node: %d, %s", status, stderr)
	}
}

// copies: files and trees come and go as they are.
func (f *fleet) copies(t *testing.T, k kubectl) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("kubectl cp needs tar")
	}
	tree := f.path("tree")
	for name, text := range map[string]string{"a": "one", "sub/b": "two"} {
		file := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if _, stderr, status := f.run(k, nil, "cp", tree, "box:"+f.path("there")); status != 0 {
		t.Fatalf("to the pod: %d, %s", status, stderr)
	}
	if _, stderr, status := f.run(k, nil, "cp", "box:"+f.path("there"), f.path("back")); status != 0 {
		t.Fatalf("from the pod: %d, %s", status, stderr)
	}
	for name, want := range map[string]string{"a": "one", "sub/b": "two"} {
		for _, side := range []string{"there", "back"} {
			file := filepath.Join(f.path(side), name)
			text, err := os.ReadFile(file)
			if err != nil || string(text) != want {
				t.Errorf("%s: %q, %v", file, text, err)
			}
			// kubectl does not keep a mode on its own side.
			if info, err := os.Stat(file); err != nil || side == "there" && info.Mode().Perm() != 0o755 {
				t.Errorf("%s: %v, %v", file, info.Mode(), err)
			}
		}
	}
}

// attach: what a container writes from now on is seen, by stream; it cannot be
// written to.
func (f *fleet) attach(t *testing.T, k kubectl) {
	f.create("talk", nil, "sh", "-c", `echo before; while :; do echo out; echo err >&2; sleep 0.05; done`)
	f.pod("talk", ready)
	if _, stderr, status := f.run(k, strings.NewReader(""), "attach", "-i", "talk"); status != 1 || !strings.Contains(stderr, "has no standard input") {
		t.Errorf("with input: %d, %q", status, stderr)
	}
	cmd := f.command(f.ctx, k, "attach", "--quiet", "talk")
	out, err1 := cmd.StdoutPipe()
	errOut, err2 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	for want, from := range map[string]io.Reader{"out\n": out, "err\n": errOut} {
		if line, err := bufio.NewReader(from).ReadString('\n'); err != nil || line != want {
			t.Errorf("%q, %v, want %q", line, err, want)
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// forward: a port of the pod's answers on a local one, several times; one that
// nobody listens on is an error that says so.
func (f *fleet) forward(t *testing.T, k kubectl) {
	listener, err := net.Listen("tcp", "127.77.9.11:0") // the node's own address
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: limit, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "you are at "+r.URL.Path) })}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	deaf := boundOnly(t)

	cmd := f.command(f.ctx, k, "port-forward", "pod/box", fmt.Sprintf(":%d", listener.Addr().(*net.TCPAddr).Port), fmt.Sprintf(":%d", deaf))
	out, err1 := cmd.StdoutPipe()
	errOut, err2 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	local := func() string {
		for lines.Scan() {
			// Forwarding from 127.0.0.1:12345 -> 80
			if words := strings.Fields(lines.Text()); len(words) == 5 && strings.HasPrefix(words[2], "127.0.0.1:") {
				return words[2]
			}
		}
		t.Fatal("kubectl says no local port")
		return ""
	}
	first, second := local(), local()
	go func() { _, _ = io.Copy(io.Discard, out) }()
	client := &http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 3 {
		resp, err := client.Get(fmt.Sprintf("http://%s/%d", first, i))
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if want := fmt.Sprintf("you are at /%d", i); err != nil || string(text) != want {
			t.Errorf("%q, %v, want %q", text, err, want)
		}
	}
	if _, err := client.Get("http://" + second); err == nil {
		t.Error("a port that nobody listens on answers")
	}
	// It ends by itself, or is ended.
	defer time.AfterFunc(limit, func() { _ = cmd.Process.Kill() }).Stop()
	said := ""
	for problems := bufio.NewScanner(errOut); problems.Scan(); {
		if strings.Contains(problems.Text(), fmt.Sprintf("nothing on the node takes connections to port %d", deaf)) {
			return
		}
		said += problems.Text() + "\n"
	}
	t.Errorf("kubectl does not say why: %q", said)
}

// boundOnly is a port that nobody listens on, and nobody else can.
func boundOnly(t *testing.T) int {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return at.(*unix.SockaddrInet4).Port
}

// top: a container that computes all the time uses a processor as far as it gets
// one, and one that sleeps none.
func (f *fleet) top(t *testing.T, k kubectl) {
	stdout, stderr, status := f.run(k, nil, "top", "pods", "--containers", "--no-headers")
	use := map[string][2]int{}
	for line := range strings.Lines(stdout) {
		var pod, container string
		var cpu, memory int
		if _, err := fmt.Sscanf(line, "%s %s %dm %dMi", &pod, &container, &cpu, &memory); err != nil || container != "c" {
			t.Errorf("%q: %v", line, err)
		}
		use[pod] = [2]int{cpu, memory}
	}
	// Others compute on this machine, too: it gets less than a processor.
	if status != 0 || len(use) < 2 || use["busy"][0] < 20 || use["box"][0] >= use["busy"][0] || use["box"][1] > 1000 {
		t.Errorf("pods: %d, %q, %q", status, stdout, stderr)
	}
	if stdout, stderr, status = f.run(k, nil, "top", "pods", "-l", "work=hard", "--no-headers"); status != 0 || !strings.HasPrefix(stdout, "busy ") || strings.Contains(stdout, "box") {
		t.Errorf("by label: %d, %q, %q", status, stdout, stderr)
	}
	stdout, stderr, status = f.run(k, nil, "top", "nodes", "--no-headers")
	words := strings.Fields(stdout)
	if status != 0 || len(words) != 5 || words[0] != "n1" || words[1] == "0m" || words[3] == "0Mi" {
		t.Errorf("nodes: %d, %q, %q", status, stdout, stderr)
	}
	if _, stderr, status = f.run(k, nil, "top", "node", "n7"); status == 0 || !strings.Contains(stderr, `"n7" not found`) {
		t.Errorf("no such node: %d, %q", status, stderr)
	}
}

// drain: a cordoned node is unschedulable; a drained one has no pod left, and
// no process of it; an eviction by itself does the same.
func (f *fleet) drain(t *testing.T, k kubectl) {
	for _, name := range []string{"evicted", "drained"} {
		f.create(name, nil, "sleep", "1000")
	}
	evicted, drained := f.pod("evicted", ready), f.pod("drained", ready)
	pids := []int{f.pid(evicted), f.pid(drained)}
	eviction := `{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted", "namespace": "default"}}`
	f.gone("evicted", func() {
		if _, stderr, status := f.run(k, strings.NewReader(eviction), "create", "--raw", "/api/v1/namespaces/default/pods/evicted/eviction", "-f", "-"); status != 0 {
			t.Fatalf("eviction: %d, %s", status, stderr)
		}
	})
	if _, stderr, status := f.run(k, nil, "cordon", "n1"); status != 0 {
		t.Errorf("cordon: %d, %s", status, stderr)
	}
	f.node(func(n *v1.Node) bool { return n.Spec.Unschedulable })
	if _, stderr, status := f.run(k, nil, "drain", "n1", "--force", "--grace-period=1", "--pod-selector=!stays"); status != 0 {
		t.Errorf("drain: %d, %s", status, stderr)
	}
	list, err := f.api.CoreV1().Pods("default").List(f.ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "box" {
		t.Errorf("after the drain there are %+v, %v", list.Items, err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d: %v", pid, err)
		}
	}
	if _, stderr, status := f.run(k, nil, "uncordon", "n1"); status != 0 {
		t.Errorf("uncordon: %d, %s", status, stderr)
	}
	f.node(func(n *v1.Node) bool { return !n.Spec.Unschedulable })
}
