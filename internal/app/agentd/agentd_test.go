package agentd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// forever prints its environment's NAME and pid and stays; on SIGTERM it ends.
const forever = `trap 'echo bye; exit 0' TERM; echo "I am $NAME"; while :; do sleep 1000 & wait $!; done`

func named(p *v1.Pod) {
	p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "NAME", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
}

// TestNode plays a node's life against a real server and a real legiond.
func TestNode(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server, a legiond and an agent")
	}
	f := newFleet(t)
	began := time.Now()
	f.agent("--token", f.token())
	node := f.node(nodeReady)
	t.Logf("token to Ready: %s", time.Since(began).Round(time.Millisecond))
	if node.Labels["zone"] != "a" || node.Labels[v1.LabelHostname] != "n1" || node.Status.Capacity.Pods().Value() != 110 ||
		len(node.Status.RuntimeHandlers) != 1 || node.Status.RuntimeHandlers[0].Name != "host" || node.Status.Addresses[0].Address != "127.77.9.11" {
		t.Errorf("node: %+v", node)
	}
	if info, err := os.Stat(f.path("agent/client.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}

	// Go's runtime would end them where the kernel gives no more (footprint).
	for _, program := range []string{"legion-agent", "legion-server"} {
		if list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", f.procs[program].Process.Pid)); err != nil || len(list) < 32 {
			t.Errorf("%s has %d threads, %v", program, len(list), err)
		}
	}

	began = time.Now()
	f.create("web", named, "sh", "-c", forever)
	pod := f.pod("web", ready)
	t.Logf("create to Ready: %s", time.Since(began).Round(time.Millisecond))
	c := pod.Status.ContainerStatuses[0]
	if pod.Status.Phase != v1.PodRunning || pod.Status.PodIP != "127.77.9.11" || c.RestartCount != 0 || c.State.Running == nil ||
		c.ContainerID != fmt.Sprintf("legion://pod-%s/c/1", pod.UID) {
		t.Errorf("status: %+v", pod.Status)
	}

	f.sub("restart", func(t *testing.T) { f.restart(t, pod) })
	f.sub("follow", func(t *testing.T) { f.follow(t) })
	f.sub("crashes", func(t *testing.T) { f.crashes(t, pod) })
	f.sub("reboot", func(t *testing.T) { f.reboot(t) })
	f.sub("bad pods", func(t *testing.T) { f.badPods(t) })
	f.sub("environment", func(t *testing.T) { f.environment(t) })
	f.sub("once", func(t *testing.T) { f.once(t) })
	f.sub("expired", func(t *testing.T) { f.expired(t, pod) })
	f.sub("gone while away", func(t *testing.T) { f.goneWhileAway(t, pod) })
	f.sub("joining", func(t *testing.T) { f.joining(t) })
}

// TestPodFields is what a pod asks for beside its commands.
func TestPodFields(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server, a legiond and an agent")
	}
	f := newFleet(t)
	f.agent("--token", f.token())
	f.node(nodeReady)
	f.sub("volumes", func(t *testing.T) { f.volumes(t) })
	f.sub("hooks", func(t *testing.T) { f.hooks(t) })
	f.sub("limits", func(t *testing.T) { f.limits(t) })
	f.sub("messages", func(t *testing.T) { f.messages(t) })
	f.sub("surroundings", func(t *testing.T) { f.surroundings(t) })
	f.sub("init containers", func(t *testing.T) { f.initContainers(t) })
}

// hooks: postStart comes before Ready, preStop before the signal, and a process
// has the capabilities that are left to it.
func (f *fleet) hooks(t *testing.T) {
	file := f.path("hooks")
	f.create("hooks", func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		say := func(what string) *v1.LifecycleHandler {
			return &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"sh", "-c", "echo " + what + " >>" + file}}}
		}
		c.Lifecycle = &v1.Lifecycle{PostStart: say("postStart"), PreStop: say("preStop")}
		if os.Geteuid() == 0 {
			c.SecurityContext = &v1.SecurityContext{Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}, Add: []v1.Capability{"CHOWN"}}}
		}
	}, "sh", "-c", `trap 'echo term >>`+file+`; exit 0' TERM; grep CapEff /proc/self/status; cat /proc/self/oom_score_adj; while :; do sleep 1000 & wait $!; done`)
	f.pod("hooks", ready)
	if text, err := os.ReadFile(file); err != nil || string(text) != "postStart\n" {
		t.Errorf("when it is ready: %q, %v", text, err)
	}
	if os.Geteuid() == 0 {
		want := "CapEff:\t0000000000000001\n1000\n"
		if text, err := f.log("hooks", v1.PodLogOptions{Follow: true, LimitBytes: new(int64(len(want)))}); err != nil || text != want {
			t.Errorf("log: %q, %v", text, err)
		}
	}
	f.delete("hooks")
	if text, err := os.ReadFile(file); err != nil || string(text) != "postStart\npreStop\nterm\n" {
		t.Errorf("after its end: %q, %v", text, err)
	}
}

func nodeReady(n *v1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// said waits until a pod has said no more and no less than text: without a probe
// it is ready before its process has said anything.
func (f *fleet) said(t *testing.T, name, text string) {
	t.Helper()
	got, err := f.log(name, v1.PodLogOptions{Follow: true, LimitBytes: new(int64(len(text)))})
	if err != nil || got != text {
		t.Fatalf("log of %s: %q, %v, want %q", name, got, err, text)
	}
}

// restart: a killed process is a new run at once, and the log of the old one
// stays.
func (f *fleet) restart(t *testing.T, pod *v1.Pod) {
	const want = "I am web\n"
	f.said(t, "web", want)
	began := time.Now()
	if err := syscall.Kill(f.pid(pod), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pod = f.pod("web", func(p *v1.Pod) bool {
		c := p.Status.ContainerStatuses[0]
		return ready(p) && c.RestartCount == 1 && c.LastTerminationState.Terminated != nil
	})
	t.Logf("kill to Ready again in the API: %s", time.Since(began).Round(time.Millisecond))
	if e := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; e.ExitCode != 137 || e.Reason != "Error" {
		t.Errorf("last state: %+v", e)
	}
	for _, previous := range []bool{true, false} {
		text, err := f.log("web", v1.PodLogOptions{Previous: previous, Follow: !previous, LimitBytes: new(int64(len(want)))})
		if err != nil || text != want {
			t.Errorf("log, previous=%v: %q, %v", previous, text, err)
		}
	}
}

// follow: a log that is followed ends with the container, with all it said.
func (f *fleet) follow(t *testing.T) {
	f.create("short", named, "sh", "-c", forever)
	f.pod("short", ready)
	type result struct {
		text string
		err  error
	}
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	stream, err := f.stream(ctx, "short", v1.PodLogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	const first = "I am short\n"
	if _, err := io.ReadFull(stream, make([]byte, len(first))); err != nil {
		t.Fatal(err)
	}
	got := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(stream)
		got <- result{first + string(text), err}
	}()
	f.delete("short")
	select {
	case r := <-got:
		if r.err != nil || !strings.HasPrefix("I am short\nbye\n", r.text) {
			t.Errorf("followed: %q, %v", r.text, r.err)
		}
	case <-time.After(limit):
		t.Error("the log does not end")
	}
}

// crashes: neither the agent's nor the server's nor legiond's death touches a
// daemon.
func (f *fleet) crashes(t *testing.T, pod *v1.Pod) {
	pid := f.pid(pod)
	same := func(after string) {
		t.Helper()
		if now := f.pid(pod); now != pid {
			t.Errorf("after %s: pid %d is now %d", after, pid, now)
		}
	}
	f.end("legion-agent", syscall.SIGKILL)
	same("the agent's death")
	f.agent() // no token: it has its certificate
	same("the agent's return")

	f.end("legiond", syscall.SIGKILL)
	f.legiond()
	same("legiond's death")

	f.end("legion-server", syscall.SIGKILL)
	same("the server's death")
	f.server()
	// All still work together: a new pod runs, its log is read.
	f.create("after", named, "sh", "-c", forever)
	f.pod("after", ready)
	same("the server's return")
	if text, err := f.log("web", v1.PodLogOptions{}); err != nil || text != "I am web\n" {
		t.Errorf("log: %q, %v", text, err)
	}
	if p := f.pod("web", ready); p.UID != pod.UID || p.Status.ContainerStatuses[0].RestartCount != 1 {
		t.Errorf("pod: %+v", p.Status.ContainerStatuses)
	}
}

// reboot: without server and agent legiond starts the pods from its disk, and
// later they are the same objects.
func (f *fleet) reboot(t *testing.T) {
	f.create("boots", named, "sh", "-c", forever)
	pod := f.pod("boots", ready)
	old := f.pid(pod)
	f.end("legion-agent", syscall.SIGKILL)
	f.end("legion-server", syscall.SIGKILL)
	f.end("legiond", syscall.SIGKILL)
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.legiond()
	f.agent()
	f.server()
	p := f.pod("boots", func(p *v1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	if now := f.pid(p); p.UID != pod.UID || now == old {
		t.Errorf("uid %s was %s; pid %d was %d", p.UID, pod.UID, now, old)
	}
}

// badPods: each says what to do, in its status and once as an event.
func (f *fleet) badPods(t *testing.T) {
	f.create("image", func(p *v1.Pod) { p.Spec.RuntimeClassName = nil })
	f.create("nosuch", nil, "/no/such/program")
	f.create("limits", func(p *v1.Pod) {
		p.Spec.Subdomain = "s"
	}, "sleep", "1000")
	for name, want := range map[string][]string{
		"image":  {"RuntimeHandlerNotFound", `no runtime for image "none"`, "set runtimeClassName: host"},
		"nosuch": {"/no/such/program", "no such file"},
	} {
		p := f.pod(name, func(p *v1.Pod) bool {
			return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Message != ""
		})
		w := p.Status.ContainerStatuses[0].State.Waiting
		for _, text := range want {
			if !strings.Contains(w.Reason+": "+w.Message, text) {
				t.Errorf("%s waits with %+v, which lacks %q", name, w, text)
			}
		}
	}
	p := f.pod("limits", ready)
	for _, c := range p.Status.Conditions {
		if c.Type == "legion.dev/NotHonoured" && (c.Status != v1.ConditionTrue || !strings.Contains(c.Message, "spec.subdomain")) {
			t.Errorf("condition: %+v", c)
		}
	}
	for name, reason := range map[string]string{"image": "RuntimeHandlerNotFound", "limits": "NotHonoured"} {
		w, err := f.api.CoreV1().Events("default").Watch(f.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		await(t, w, err, func(e *v1.Event) bool { return e.Reason == reason })
	}
}

// environment: a pod waits for the objects it refers to and starts when they
// are there; the node reads no other object.
func (f *fleet) environment(t *testing.T) {
	f.create("env", func(p *v1.Pod) {
		p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{Prefix: "C_", ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "settings"}}}}
		p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "KEY", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: v1.LocalObjectReference{Name: "key"}, Key: "k"}}}}
	}, "sh", "-c", `echo "$C_color $KEY"; exec sleep 1000`)
	f.pod("env", func(p *v1.Pod) bool {
		if len(p.Status.ContainerStatuses) == 0 {
			return false
		}
		w := p.Status.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, `configmap "settings" not found`)
	})
	if _, err := f.api.CoreV1().ConfigMaps("default").Create(f.ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"color": "blue"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"key", "other"} {
		if _, err := f.api.CoreV1().Secrets("default").Create(f.ctx, &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"k": "hidden"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	f.pod("env", ready)
	t.Logf("objects there to Ready: %s", time.Since(began).Round(time.Millisecond))
	f.said(t, "env", "blue hidden\n")
	config, err := clientcmd.BuildConfigFromFlags("", f.path("agent/kubeconfig"))
	if err != nil {
		t.Skipf("the agent's own credentials: %v", err)
	}
	own, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := own.CoreV1().Secrets("default").Get(f.ctx, "key", metav1.GetOptions{}); err != nil {
		t.Errorf("the node's own pod's secret: %v", err)
	}
	if _, err := own.CoreV1().Secrets("default").Get(f.ctx, "other", metav1.GetOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a secret of no pod of the node: %v", err)
	}
}

// volumes: what a pod mounts it sees, changes reach it while it runs, and
// nothing is left afterwards.
func (f *fleet) volumes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes mounts")
	}
	settings := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "live"}, Data: map[string]string{"color": "blue"}}
	if _, err := f.api.CoreV1().ConfigMaps("default").Create(f.ctx, settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	at := f.path("mounted")
	f.create("volumes", func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{
			{Name: "live", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "live"}}}},
			{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
			{Name: "ram", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{
			{Name: "live", MountPath: at + "/live"}, {Name: "scratch", MountPath: at + "/scratch"}, {Name: "ram", MountPath: at + "/ram"},
		}
	}, "sh", "-c", `cd `+at+`; echo $(cat live/color) $(stat -f -c %T ram) $(cut -c1-3 /var/run/secrets/kubernetes.io/serviceaccount/token) $(cat /run/secrets/kubernetes.io/serviceaccount/namespace)
		touch scratch/x ram/x; while [ "$(cat live/color)" = blue ]; do sleep 0.02; done; echo $(cat live/color); exec sleep 1000`)
	f.pod("volumes", ready)
	want := "blue tmpfs eyJ default\n"
	// Without a probe a pod is ready before its process has looked.
	if text, err := f.log("volumes", v1.PodLogOptions{Follow: true, LimitBytes: new(int64(len(want)))}); err != nil || text != want {
		t.Fatalf("log: %q, %v", text, err)
	}
	settings.Data["color"] = "green"
	began := time.Now()
	if _, err := f.api.CoreV1().ConfigMaps("default").Update(f.ctx, settings, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	want = "blue tmpfs eyJ default\ngreen"
	if text, err := f.log("volumes", v1.PodLogOptions{Follow: true, LimitBytes: new(int64(len(want)))}); err != nil || text != want {
		t.Fatalf("log: %q, %v", text, err)
	}
	t.Logf("ConfigMap changed to seen by the process: %s", time.Since(began).Round(time.Millisecond))

	// A reboot: neither agent nor server is there, and the memory is gone.
	f.end("legion-agent", syscall.SIGKILL)
	f.end("legiond", syscall.SIGTERM)
	if text, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(text), f.dir) {
		t.Errorf("mounts are left:\n%s", text)
	}
	f.legiond()
	f.agent()
	pod := f.pod("volumes", func(p *v1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	want = "green tmpfs eyJ default\ngreen"
	if text, err := f.log("volumes", v1.PodLogOptions{Follow: true, LimitBytes: new(int64(len(want)))}); err != nil || text != want {
		t.Errorf("log after a reboot: %q, %v", text, err)
	}
	if _, err := os.Stat(f.path("agent/pods/" + string(pod.UID) + "/volumes/scratch/x")); err != nil {
		t.Errorf("the emptyDir: %v", err)
	}
	f.delete("volumes")
	if err := f.awaitRemoved("pod-" + string(pod.UID)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(at); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mount points are left: %v", err)
	}
	if text, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(text), f.dir) {
		t.Errorf("mounts are left:\n%s", text)
	}
}

// once: a pod that ends stays as it ended, with its log.
func (f *fleet) once(t *testing.T) {
	f.create("once", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }, "sh", "-c", "echo one; echo two; exit 3")
	p := f.pod("once", func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed })
	if e := p.Status.ContainerStatuses[0].State.Terminated; e == nil || e.ExitCode != 3 {
		t.Errorf("state: %+v", p.Status.ContainerStatuses[0].State)
	}
	last := int64(1)
	if text, err := f.log("once", v1.PodLogOptions{TailLines: &last}); err != nil || text != "two\n" {
		t.Errorf("log: %q, %v", text, err)
	}
	bytes := int64(2)
	if text, err := f.log("once", v1.PodLogOptions{LimitBytes: &bytes}); err != nil || text != "on" {
		t.Errorf("log: %q, %v", text, err)
	}
	text, err := f.log("once", v1.PodLogOptions{Timestamps: true, TailLines: &last})
	stamp, rest, _ := strings.Cut(text, " ")
	if _, perr := time.Parse(time.RFC3339Nano, stamp); err != nil || perr != nil || rest != "two\n" {
		t.Errorf("log: %q, %v, %v", text, err, perr)
	}
	if _, err := f.log("once", v1.PodLogOptions{Previous: true}); err == nil || !strings.Contains(err.Error(), "previous terminated container") {
		t.Errorf("previous: %v", err)
	}
}

// goneWhileAway: a pod that was removed while the agent was away is stopped
// when it returns.
func (f *fleet) goneWhileAway(t *testing.T, pod *v1.Pod) {
	// Whoever its parent is now may not have collected it.
	process, err := unix.PidfdOpen(f.pid(pod), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	ended := func() bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}, 0)
		return err == nil && n > 0
	}
	f.end("legion-agent", syscall.SIGTERM)
	if ended() {
		t.Fatal("the agent's stop touched the pod")
	}
	now := int64(0)
	if err := f.api.CoreV1().Pods("default").Delete(f.ctx, "web", metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- f.awaitRemoved("pod-" + string(pod.UID)) }()
	f.agent()
	select {
	case err := <-gone:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(limit):
		t.Error("the group stays")
	}
	if !ended() {
		t.Error("the process stays")
	}
}

// joining: each refusal says why.
func (f *fleet) joining(t *testing.T) {
	good, server, _ := strings.Cut(f.token(), "@")
	if server != f.url {
		t.Errorf("the line names the server %q, not %q", server, f.url)
	}
	ended := f.token("--ttl", "1ns")
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing":       {nil, "has no credentials"},
		"no token":      {[]string{"--token", "abc"}, "not a join token"},
		"unknown token": {[]string{"--token", "legion1.zzzzzz." + good[len("legion1.zzzzzz."):]}, "does not know the join token"},
		"ended token":   {[]string{"--token", ended}, "ended at"},
		"other fleet":   {[]string{"--token", good[:len(good)-4] + flip(good[len(good)-4:])}, "signed by another CA"},
		"bad label":     {[]string{"--labels", "kubernetes.io/os=x"}, "is set by the agent itself"},
	} {
		cmd := exec.CommandContext(f.ctx, os.Args[0], append(f.agentArgs("--node", "n2", "--dir", f.path("join")), test.args...)...)
		cmd.Env = append(os.Environ(), programVariable+"=legion-agent")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), test.want) {
			t.Errorf("%s: %v: %s, want %q", name, err, out, test.want)
		}
	}
}

// flip gives other hex digits.
func flip(hex string) string {
	return strings.Map(func(r rune) rune {
		if r == '0' {
			return '1'
		}
		return '0'
	}, hex)
}
