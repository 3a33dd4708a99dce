package podspec

import (
	"encoding/json"
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/service"
)

// TestLocalhostProfile: a profile of the node becomes the filter of a process of
// the host and is given to the runtime of a container; what is wrong with it
// keeps the container waiting.
func TestLocalhostProfile(t *testing.T) {
	const conditional = `{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}, {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}], "syscalls": [
		{"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [{"index": 0, "value": 256, "valueTwo": 256, "op": "SCMP_CMP_MASKED_EQ"}, {"index": 5, "value": 7, "op": "SCMP_CMP_GT"}]},
		{"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_BPF"]}}]}`
	for name, test := range map[string]struct {
		text string
		err  error
		want string // the filter, or why not
	}{
		"empty":         {text: `{}`, want: "null"},
		"plain":         {text: `{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}]}`, want: `{"default":0,"rules":[{"calls":["read","write"],"do":2147418112}]}`},
		"conditional":   {text: conditional, want: `{"default":2147418112,"secondary":true,"rules":[{"calls":["clone"],"do":327702,"where":[{"arg":0,"is":"\u0026","mask":256,"value":256},{"arg":5,"is":"\u003e","value":7}]}]}`},
		"missing":       {err: errors.New("open: no such file"), want: `cannot load seccomp profile "/profiles/p.json": open: no such file`},
		"no JSON":       {text: "x", want: `cannot load seccomp profile "/profiles/p.json": Decoding seccomp profile failed: invalid character 'x' looking for beginning of value`},
		"asks somebody": {text: `{"defaultAction": "SCMP_ACT_NOTIFY"}`, want: `cannot load seccomp profile "/profiles/p.json": it asks another program what to do (SCMP_ACT_NOTIFY), and there is none`},
	} {
		for _, class := range []string{HostRuntime, OCIRuntime} {
			file := "p.json"
			pod := &v1.Pod{Spec: v1.PodSpec{
				RuntimeClassName: &class,
				SecurityContext:  &v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: &file}},
				Containers:       []v1.Container{{Name: "c", Image: "i", Command: []string{"x"}, SecurityContext: &v1.SecurityContext{Capabilities: &v1.Capabilities{Add: []v1.Capability{"BPF"}}}}},
			}}
			if got := Profiles(pod); len(got) != 1 || got[0] != file {
				t.Fatalf("it names %q", got)
			}
			n := node
			n.OCI, n.Images = &ocispec.Runtime{Program: "/usr/sbin/runc"}, map[string]Pulled{"i": {Image: &ocispec.Image{}}}
			n.Profiles = map[string]ocispec.Profile{file: {Path: "/profiles/p.json", Text: []byte(test.text), Err: test.err}}
			g, report := Compile(pod, n, nil)
			if len(report.Blocked) > 0 {
				if b := report.Blocked[0]; b.Reason != CreateError || b.Message != test.want {
					t.Errorf("%s, %s: %+v", name, class, b)
				}
				continue
			}
			var got any
			if class == HostRuntime {
				var filter *service.CallFilter
				if box := g.Services[0].Exec.Sandbox; box != nil {
					filter = box.SystemCalls
				}
				got = filter
			} else {
				var spec specs.Spec
				if err := json.Unmarshal(g.Services[0].Exec.Container.Spec, &spec); err != nil {
					t.Fatal(err)
				}
				// What it is for a process tells whether it is the same.
				var filter *service.CallFilter
				if spec.Linux.Seccomp != nil {
					if f, err := callFilter(spec.Linux.Seccomp); err == nil {
						filter = f
					}
				}
				got = filter
			}
			if text, _ := json.Marshal(got); string(text) != test.want {
				t.Errorf("%s, %s: %s, want %s", name, class, text, test.want)
			}
		}
	}
}
