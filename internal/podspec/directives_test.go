package podspec

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/service"
)

func annotated(text string, command ...string) *v1.Pod {
	class := HostRuntime
	pod := &v1.Pod{Spec: v1.PodSpec{RuntimeClassName: &class, Containers: []v1.Container{{Name: "main", Command: command}, {Name: "side", Command: []string{"/bin/side"}}}}}
	pod.Annotations = map[string]string{UnitAnnotation + "main": text}
	return pod
}

func TestDirectivesOfOneContainer(t *testing.T) {
	g, r := Compile(annotated("Type=notify\nNice=3\nEnvironmentFile=-/etc/default/main\nExecStart=/bin/main $OPTS\nRestartSec=2\n"), node, nil)
	if len(r.Blocked)+len(r.NotHonoured) > 0 {
		t.Fatalf("%+v", r)
	}
	main, side := g.Services[0], g.Services[1]
	if main.Type != service.Notify || main.NotifyAccess != service.NotifyMain || *main.Exec.Nice != 3 || main.Start[0].Path != "/bin/main" || main.Start[0].NoExpand {
		t.Errorf("%+v", main)
	}
	if main.Restart.Mode != service.RestartAlways || main.Restart.Backoff != nil {
		t.Errorf("restart %+v", main.Restart)
	}
	if side.Type != service.Exec || side.Exec.Nice != nil || side.Restart.Backoff == nil {
		t.Errorf("the other container: %+v", side)
	}
}

// TestDirectivesRefused: what is wrong is the container's reason to wait, with
// its line.
func TestDirectivesRefused(t *testing.T) {
	for text, want := range map[string]string{
		"Nice=40":                        `annotation unit.legion.dev/main:1: Nice= `,
		"UMask=0022\nNonsense=1":         `main:2: Nonsense= is unknown in section [Service]`,
		"User=root":                      `main:1: User= is securityContext.runAsUser of the pod`,
		"TimeoutStopSec=3":               `TimeoutStopSec= is terminationGracePeriodSeconds of the pod`,
		"IPAddressDeny=any":              `IPAddressDeny= is not honoured yet`,
		"StartLimitBurst=3":              `StartLimitBurst= has no meaning in a pod`,
		"[Unit]\nAfter=a.service":        `only [Service] has a meaning here, not [Unit]`,
		"Type=oneshot":                   `would run the commands without end`,
		"Type=dbus":                      `needs BusName=`,
		"no assignment":                  `no = in`,
		"[Service":                       `does not end in ]`,
		"ExecStart=/bin/other":           `ExecStart= and the container's command or args are both set`,
		"RestartSteps=3":                 `work only together`,
		"StateDirectory=../etc":          `StateDirectory= `,
		"X-Mine=1":                       `X-Mine= is unknown`,
		"ExecStartPre=not/absolute\n":    `ExecStartPre= `,
		"WorkingDirectory=relative/path": `WorkingDirectory= `,
	} {
		t.Run(text, func(t *testing.T) {
			_, r := Compile(annotated(text, "/bin/main"), node, nil)
			if len(r.Blocked) != 1 || r.Blocked[0].Container != "main" || r.Blocked[0].Reason != ConfigError || !strings.Contains(r.Blocked[0].Message, want) {
				t.Errorf("got %+v, want %q", r.Blocked, want)
			}
		})
	}
}

// TestDirectivesNeedACommand: neither the container nor the annotation has one.
func TestDirectivesNeedACommand(t *testing.T) {
	_, r := Compile(annotated("Nice=3"), node, nil)
	if len(r.Blocked) != 1 || !strings.Contains(r.Blocked[0].Message, "there is nothing to run") {
		t.Errorf("%+v", r.Blocked)
	}
}

// TestDirectivesKeepToRunAsNonRoot: commands with + and the files that legiond
// reads for a service would go round it.
func TestDirectivesKeepToRunAsNonRoot(t *testing.T) {
	yes, no, uid := true, false, int64(33)
	pod := annotated("ExecStartPre=+/bin/x", "/bin/main")
	pod.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &uid}
	if _, r := Compile(pod, node, nil); len(r.Blocked) != 1 || !strings.Contains(r.Blocked[0].Message, "runAsNonRoot") {
		t.Errorf("%+v", r.Blocked)
	}
	pod.Spec.Containers[0].SecurityContext = &v1.SecurityContext{RunAsNonRoot: &no}
	if _, r := Compile(pod, node, nil); len(r.Blocked) != 0 {
		t.Errorf("the container's own word: %+v", r.Blocked)
	}
}

func TestDirectivesOfAnImageHaveNoEffect(t *testing.T) {
	pod := annotated("Nice=3", "/bin/main")
	pod.Spec.RuntimeClassName = nil
	oci := node
	oci.OCI = &ocispec.Runtime{}
	g, r := Compile(pod, oci, nil)
	if len(r.NotHonoured) != 1 || r.NotHonoured[0] != "metadata.annotations[unit.legion.dev/main]" || g.Services[0].Exec.Nice != nil {
		t.Errorf("%+v", r)
	}
}
