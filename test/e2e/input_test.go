package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// says fails the test unless text has every one of the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("does not say %q:\n%s", w, text)
		}
	}
}

func TestManifestWithUnknownField(t *testing.T) {
	f := shareFleet(t)
	manifest := strings.Replace(daemonSet("typo", "sleep", "1"), "      containers:", "      containerz: []\n      containers:", 1)
	out, err := f.tryKubectl(manifest, "apply", "-f", "-")
	if err == nil {
		t.Fatalf("accepted: %s", out)
	}
	says(t, out, "unknown field", "containerz")
}

// waiting waits for the waiting reason of an app's containers and returns the
// message of one.
func (f *fleet) waiting(t *testing.T, app string, reasons ...string) string {
	t.Helper()
	var message string
	f.untilPods(t, app, 20*time.Second, "waiting with one of "+strings.Join(reasons, ", "), func(pods map[string]*corev1.Pod) bool {
		for _, p := range pods {
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Waiting == nil {
					continue
				}
				for _, r := range reasons {
					if c.State.Waiting.Reason == r {
						message = c.State.Waiting.Message
						return true
					}
				}
			}
		}
		return false
	})
	return message
}

func (f *fleet) applyBroken(t *testing.T, name, manifest string) {
	t.Helper()
	f.apply(t, manifest)
	t.Cleanup(func() { _, _ = f.tryKubectl("", "delete", "ds", name, "--wait=true", "--timeout=30s") })
}

func TestImageWithoutRuntime(t *testing.T) {
	if _, err := exec.LookPath("runc"); err == nil {
		t.Skip("there is runc: see TestImages of internal/app/agentd")
	}
	f := shareFleet(t)
	manifest := strings.Replace(daemonSet("image", "/pause"), "      runtimeClassName: host\n", "", 1)
	manifest = strings.Replace(manifest, "image: host", "image: registry.example/pause:1", 1)
	f.applyBroken(t, "image", manifest)
	f.kubectl(t, "wait", "--for=condition=Degraded", "ds/image", "--timeout=20s")
	says(t, f.kubectl(t, "get", "ds", "image", "-o", "yaml"), "NoRuntime", "no container runtime", "handlers: host", "set runtimeClassName")
	f.kubectl(t, "wait", "--for=jsonpath={.reason}=NoRuntime", "event", "--field-selector=involvedObject.name=image,reason=NoRuntime", "--timeout=20s")

	// A pod that is put on the node by name is told by the node.
	f.apply(t, `apiVersion: v1
kind: Pod
metadata: {name: placed, namespace: default, labels: {app: placed}}
spec: {nodeName: n1, containers: [{name: c, image: "registry.example/pause:1"}]}
`)
	t.Cleanup(func() { _, _ = f.tryKubectl("", "delete", "pod", "placed", "--wait=true", "--timeout=30s") })
	message := f.waiting(t, "placed", "RuntimeHandlerNotFound")
	says(t, message, "registry.example/pause:1", "runtimeClassName: host")
}

func TestCommandThatDoesNotExist(t *testing.T) {
	f := shareFleet(t)
	f.applyBroken(t, "nosuch", daemonSet("nosuch", "/no/such/command"))
	message := f.waiting(t, "nosuch", "RunContainerError", "CrashLoopBackOff")
	says(t, message, "/no/such/command")
}

func TestSecondUpOnTheSameDirectory(t *testing.T) {
	f := shareFleet(t)
	f.deploy(t, "second", daemonSet("second", "sleep", "86431"))
	before := f.pidsByNode(t, "second")
	out, _ := run(time.Minute, "legion", "up", "--dir", f.dir, "--nodes", "3")
	says(t, out, "already")
	after := f.pidsByNode(t, "second")
	for node, pid := range before {
		if after[node] != pid {
			t.Errorf("%s: pid %d became %d by a second up", node, pid, after[node])
		}
	}
}

func TestBrokenUnitDoesNotStopTheOthers(t *testing.T) {
	need(t)
	units := t.TempDir()
	dir := shortDir(t)
	write(t, filepath.Join(units, "good.service"), "[Service]\nExecStart=/bin/sleep 86432\n[Install]\nWantedBy=multi-user.target\n")
	write(t, filepath.Join(units, "broken.service"), "[Service\nExecStart=/bin/sleep 1\n")
	write(t, filepath.Join(units, "odd.service"), "[Service]\nExecStart=/bin/sleep 86433\nNoSuchDirective=1\n")
	startHost(t, dir, "--units", units)
	h := "-H" + filepath.Join(dir, "host.sock")

	mustRun(t, 10*time.Second, "legion", "start", h, "good.service")
	out, err := run(10*time.Second, "legion", "start", h, "broken.service")
	if err == nil {
		t.Fatalf("a broken unit started: %s", out)
	}
	says(t, out, "broken.service", ":1")
	mustRun(t, 10*time.Second, "legion", "start", h, "odd.service")
	out, _ = run(10*time.Second, "legion", "status", h, "odd.service")
	says(t, out, "NoSuchDirective", "odd.service:3")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
