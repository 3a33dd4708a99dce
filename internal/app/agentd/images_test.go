package agentd

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"legion.dev/legion/internal/image"
)

// standin is an image of test/standin, which says how it was started.
func standin(t testing.TB, config imagev1.Config) imagev1.Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "standin")
	cmd := exec.Command("go", "build", "-o", program, "legion.dev/legion/test/standin")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, text []byte) {
		h.Size = int64(len(text))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"etc/", "srv/", "tmp/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0::/root:/\napp:x:1000:1001::/srv:/\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\napp:x:1001:\nextra:x:77:app\n"))
	add(tar.Header{Name: "standin", Typeflag: tar.TypeReg, Mode: 0o755}, text)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// told is what the stand-in says of its start.
type told struct {
	Args, Env     []string
	UID, GID, PID int
	Groups        []int
	Dir, Hostname string
	ReadOnly      bool
	FirstRun      bool
	ResolvConf    int
}

// imagesFleet is a fleet whose node runs images, and a registry for it.
func imagesFleet(t testing.TB) (*fleet, string) {
	t.Helper()
	if os.Getenv("LEGION_E2E") == "" {
		t.Skip("set LEGION_E2E=1 (make e2e) to run containers")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc")
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	f := newFleet(t)
	f.agent("--token", f.token(), "--oci-runtime", "runc")
	f.node(nodeReady)
	return f, strings.TrimPrefix(server.URL, "http://")
}

func push(t testing.TB, at string, img imagev1.Image) {
	t.Helper()
	ref, err := name.ParseReference(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
}

// container makes a pod of one container of an image.
func (f *fleet) container(name, image string, change func(*v1.Pod)) {
	f.t.Helper()
	f.create(name, func(p *v1.Pod) {
		p.Spec.RuntimeClassName = nil
		p.Spec.Containers[0].Image = image
		if change != nil {
			change(p)
		}
	})
}

// says waits until the pod's log has a line of the stand-in's, the nth.
func (f *fleet) says(name string, nth int) told {
	f.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		text, err := f.log(name, v1.PodLogOptions{})
		var lines []string
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "{") && strings.HasSuffix(line, "\n") {
				lines = append(lines, line)
			}
		}
		if len(lines) >= nth {
			var out told
			if err := json.Unmarshal([]byte(lines[nth-1]), &out); err != nil {
				f.t.Fatal(err)
			}
			return out
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("pod %s has not said so much: %q, %v", name, text, err)
		}
		time.Sleep(20 * time.Millisecond) // the log is asked anew: its pod may restart meanwhile
	}
}

// TestImages runs pods from images: pulled from a registry on loopback, by runc.
func TestImages(t *testing.T) {
	f, host := imagesFleet(t)
	at := host + "/team/standin:v1"
	push(t, at, standin(t, imagev1.Config{
		Entrypoint: []string{"/standin"}, Cmd: []string{"from", "cmd"}, Env: []string{"COLOUR=red", "SHAPE=round"},
		User: "app", WorkingDir: "/srv", StopSignal: "SIGQUIT",
	}))
	f.sub("image", func(t *testing.T) { f.imageIsRespected(t, at) })
	f.sub("crashes", func(t *testing.T) { f.containerCrashes(t, at) })
	f.sub("fields", func(t *testing.T) { f.containerFields(t, at) })
	f.sub("ends", func(t *testing.T) { f.containerEnds(t, at) })
	f.sub("exec", func(t *testing.T) { f.containerExec(t, at) })
	f.sub("pulls", func(t *testing.T) { f.badImages(t, host, at) })
	f.sub("prefetch", func(t *testing.T) { f.prefetches(t, host) })
	f.sub("nothing is left", func(t *testing.T) { f.nothingLeft(t) })
}

// imageIsRespected: ENTRYPOINT, CMD, ENV, USER, WORKDIR and STOPSIGNAL.
func (f *fleet) imageIsRespected(t *testing.T, at string) {
	f.container("plain", at, nil)
	pod := f.pod("plain", ready)
	got := f.says("plain", 1)
	if !slices.Equal(got.Args, []string{"/standin", "from", "cmd"}) || got.UID != 1000 || got.GID != 1001 || !slices.Contains(got.Groups, 77) ||
		got.Dir != "/srv" || got.PID != 1 || got.Hostname != "plain" || !slices.Contains(got.Env, "COLOUR=red") || got.ResolvConf == 0 {
		t.Errorf("the container: %+v", got)
	}
	if id := pod.Status.ContainerStatuses[0].ImageID; !strings.HasPrefix(id, strings.TrimSuffix(at, ":v1")+"@sha256:") {
		t.Errorf("imageID %q", id)
	}
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	stream, err := f.stream(ctx, "plain", v1.PodLogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	f.delete("plain")
	if text, err := io.ReadAll(stream); err != nil || !strings.Contains(string(text), "signal: quit\n") {
		t.Errorf("the log at its end: %q, %v", text, err)
	}
	if err := f.awaitRemoved("pod-" + string(pod.UID)); err != nil {
		t.Error(err)
	}
}

// containerCrashes: a container outlives legiond and the agent, is taken up
// again, and one that ends is a new run on the image as it is.
func (f *fleet) containerCrashes(t *testing.T, at string) {
	f.container("lasting", at, func(p *v1.Pod) {
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{RunAsUser: new(int64(0))}
	})
	pod := f.pod("lasting", ready)
	before := f.pid(pod)
	if got := f.says("lasting", 1); !got.FirstRun || got.ReadOnly {
		t.Errorf("the first run: %+v", got)
	}
	f.end("legion-agent", syscall.SIGKILL)
	f.end("legiond", syscall.SIGKILL)
	if err := syscall.Kill(before, 0); err != nil {
		t.Fatalf("the container ended with legiond: %v", err)
	}
	f.legiond()
	f.agent("--oci-runtime", "runc")
	f.pod("lasting", ready)
	if after := f.pid(pod); after != before {
		t.Errorf("the container was started again: process %d was %d", after, before)
	}
	// A first process that is killed takes the container with it.
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p := f.pod("lasting", func(p *v1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	if e := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; e == nil || e.ExitCode != 137 {
		t.Errorf("the last run: %+v", p.Status.ContainerStatuses[0])
	}
	if got := f.says("lasting", 1); !got.FirstRun {
		t.Errorf("the second run has what the first wrote: %+v", got)
	}
	f.remove("lasting", pod)
}

func (f *fleet) remove(name string, pod *v1.Pod) {
	f.t.Helper()
	f.delete(name)
	if err := f.awaitRemoved("pod-" + string(pod.UID)); err != nil {
		f.t.Error(err)
	}
}

// containerFields: what the pod says goes before what the image says.
func (f *fleet) containerFields(t *testing.T, at string) {
	dir := f.path("shared")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	yes := true
	f.container("fields", at, func(p *v1.Pod) {
		c := &p.Spec.Containers[0]
		c.Args = []string{"$(COLOUR)", "b"}
		c.WorkingDir = "/tmp"
		c.Env = []v1.EnvVar{{Name: "COLOUR", Value: "blue"}, {Name: "WHO", ValueFrom: &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
		c.SecurityContext = &v1.SecurityContext{
			RunAsUser: new(int64(4321)), RunAsGroup: new(int64(4322)), ReadOnlyRootFilesystem: &yes,
			Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}}, SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault},
		}
		p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroups: []int64{55}}
		p.Spec.Volumes = []v1.Volume{
			{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir}}},
			{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}},
		}
		c.VolumeMounts = []v1.VolumeMount{{Name: "host", MountPath: "/deep/host", SubPath: "sub"}, {Name: "scratch", MountPath: "/scratch"}}
		c.Lifecycle = &v1.Lifecycle{PostStart: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"/standin", "write", "/scratch/hook", "x"}}}}
		c.ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"/standin", "exists", "/scratch/hook"}}}, PeriodSeconds: 1}
		c.Command = []string{"/standin"}
	})
	pod := f.pod("fields", ready)
	got := f.says("fields", 1)
	if !slices.Equal(got.Args, []string{"/standin", "blue", "b"}) || got.UID != 4321 || got.GID != 4322 || !slices.Contains(got.Groups, 55) ||
		got.Dir != "/tmp" || !got.ReadOnly || !slices.Contains(got.Env, "COLOUR=blue") || !slices.Contains(got.Env, "SHAPE=round") || !slices.Contains(got.Env, "WHO=fields") {
		t.Errorf("the container: %+v", got)
	}
	status := fmt.Sprintf("/proc/%d/root", f.pid(pod))
	if _, err := os.Stat(status + "/scratch/hook"); err != nil {
		t.Errorf("the postStart hook: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(filepath.Dir(status), "status")); err != nil || !strings.Contains(string(text), "CapBnd:\t0000000000000000\n") || !strings.Contains(string(text), "Seccomp:\t2\n") {
		t.Errorf("capabilities and filters: %s, %v", text, err)
	}
	f.remove("fields", pod)
}

// containerEnds: how a container ends is known, also of one that ends at once,
// and of one that wants more memory than its limit.
func (f *fleet) containerEnds(t *testing.T, at string) {
	some := v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}
	for name, test := range map[string]struct {
		args   []string
		code   int32
		reason string
	}{
		"three": {[]string{"exit", "3"}, 3, "Error"},
		"well":  {[]string{"exit", "0"}, 0, "Completed"},
		"eater": {[]string{"eat"}, 137, "OOMKilled"},
	} {
		f.container(name, at, func(p *v1.Pod) {
			p.Spec.RestartPolicy = v1.RestartPolicyNever
			p.Spec.Containers[0].Args = test.args
			if test.args[0] == "eat" {
				p.Spec.Containers[0].Resources = v1.ResourceRequirements{Limits: some, Requests: some}
			}
		})
		pod := f.pod(name, func(p *v1.Pod) bool { return p.Status.Phase == v1.PodFailed || p.Status.Phase == v1.PodSucceeded })
		if e := pod.Status.ContainerStatuses[0].State.Terminated; e == nil || e.ExitCode != test.code || e.Reason != test.reason {
			t.Errorf("%s: %+v", name, e)
		}
		f.remove(name, pod)
	}
}

// containerExec: kubectl exec runs a command in the container, as its user.
func (f *fleet) containerExec(t *testing.T, at string) {
	f.container("box", at, nil)
	pod := f.pod("box", ready)
	k := f.kubectls()["built-in"]
	if out, errOut, status := f.run(k, nil, "exec", "box", "--", "/standin", "write", "/tmp/x", "x"); status != 1 || !strings.Contains(out, "permission denied") {
		t.Errorf("as another user: %d, %q, %q", status, out, errOut)
	}
	if out, errOut, status := f.run(k, nil, "exec", "box", "--", "/standin", "exists", "/srv"); status != 0 {
		t.Errorf("exec: %d, %q, %q", status, out, errOut)
	}
	f.remove("box", pod)
}

// badImages: why an image is not there is said in the kubelet's words, and one
// that comes later is run.
func (f *fleet) badImages(t *testing.T, host, at string) {
	waiting := func(reason, text string) func(*v1.Pod) bool {
		return func(p *v1.Pod) bool {
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return false
			}
			w := p.Status.ContainerStatuses[0].State.Waiting
			return w != nil && w.Reason == reason && strings.Contains(w.Message, text)
		}
	}
	late := host + "/late/app:v1"
	f.container("late", late, nil)
	f.pod("late", waiting("ErrImagePull", "NAME_UNKNOWN"))
	f.pod("late", waiting("ImagePullBackOff", "Back-off pulling image \""+late+"\": ErrImagePull: "))
	f.container("never", host+"/never/app:v1", func(p *v1.Pod) { p.Spec.Containers[0].ImagePullPolicy = v1.PullNever })
	f.pod("never", waiting("ErrImageNeverPull", "is not present with pull policy of Never"))
	f.container("root", at, func(p *v1.Pod) {
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{RunAsNonRoot: new(true)}
	})
	f.pod("root", waiting("CreateContainerConfigError", "image has non-numeric user (app)"))
	store, err := image.OpenHere(f.path("images"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := store.Find(at)
	if err != nil || found.Config.StopSignal != "SIGQUIT" {
		t.Errorf("the store: %+v, %v", found, err)
	}
	push(t, late, standin(t, imagev1.Config{Entrypoint: []string{"/standin"}}))
	f.pod("late", ready)
	for _, n := range []string{"late", "never", "root"} {
		f.remove(n, f.pod(n, func(p *v1.Pod) bool { return p != nil }))
	}
}

// nothingLeft: no mount, no cgroup, no state of the runtime.
func (f *fleet) nothingLeft(t *testing.T) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(text), f.dir) {
		t.Errorf("mounts are left: %v\n%s", err, text)
	}
	groups, err := f.host.Groups(f.ctx)
	if err != nil || len(groups) != 0 {
		t.Errorf("groups are left: %+v, %v", groups, err)
	}
	left, err := filepath.Glob(f.path("agent/pods/*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// BenchmarkContainer measures a pod of an image that is there from the request
// that creates it to its process, and to Ready in the API.
func BenchmarkContainer(b *testing.B) {
	f, host := imagesFleet(b)
	at := host + "/standin:v1"
	push(b, at, standin(b, imagev1.Config{Entrypoint: []string{"/standin"}}))
	f.container("first", at, nil)
	f.remove("first", f.pod("first", ready))
	var exec, readied []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("pod-%d", i)
		began := time.Now()
		f.container(name, at, nil)
		pod := f.pod(name, ready)
		readied = append(readied, time.Since(began))
		g, err := f.host.Group(f.ctx, "pod-"+string(pod.UID))
		if err != nil {
			b.Fatal(err)
		}
		exec = append(exec, g.Status.Services[0].Main.Started.Sub(began))
		f.remove(name, pod)
	}
	b.ReportMetric(median(exec), "ms/create-to-process")
	b.ReportMetric(median(readied), "ms/create-to-ready")
}
