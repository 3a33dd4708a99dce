package ocispec

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/service"
)

const passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"

const group = "root:x:0:\napp:x:1001:\nextra:x:77:app\n"

// contained is a container of the pod, as a service and as a configuration.
func contained(t *testing.T, image Image, change func(*v1.Pod, *service.Service)) (service.Service, specs.Spec, *Refusal) {
	t.Helper()
	return containedIn(t, image, "", change)
}

func containedIn(t *testing.T, image Image, domain string, change func(*v1.Pod, *service.Service)) (service.Service, specs.Spec, *Refusal) {
	t.Helper()
	image.ID, image.Layers, image.Passwd, image.Group = "sha256:abc", []string{"/images/a", "/images/b"}, passwd, group
	pod := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: "prod", UID: "u1"},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: "web"}}},
	}
	s := service.Service{Name: "c", Exec: service.ExecContext{Environment: []string{"HOSTNAME=node-1"}}, Start: []service.Command{{}}}
	if change != nil {
		change(pod, &s)
	}
	ctr := &pod.Spec.Containers[0]
	s.Start[0].Argv = slices.Concat(ctr.Command, ctr.Args)
	refusal := Contain(&s, Input{
		Pod: pod, Container: ctr, Image: &image, Node: "node-1", PodDir: "/pods/u1", Domain: domain,
		Runtime: &Runtime{Program: "/usr/sbin/runc", State: "/run/oci"},
	})
	var spec specs.Spec
	if refusal == nil {
		if err := json.Unmarshal(s.Exec.Container.Spec, &spec); err != nil {
			t.Fatal(err)
		}
	}
	return s, spec, refusal
}

// TestArgv has the table of Kubernetes' documentation: command and args over
// ENTRYPOINT and CMD.
func TestArgv(t *testing.T) {
	for _, test := range []struct{ entrypoint, cmd, command, args, want string }{
		{"/ep-1", "foo bar", "", "", "/ep-1 foo bar"},
		{"/ep-1", "foo bar", "/ep-2", "", "/ep-2"},
		{"/ep-1", "foo bar", "", "zoo boo", "/ep-1 zoo boo"},
		{"/ep-1", "foo bar", "/ep-2", "zoo boo", "/ep-2 zoo boo"},
		{"", "foo bar", "", "", "foo bar"},
		{"", "", "", "", ""},
	} {
		image := Image{Entrypoint: strings.Fields(test.entrypoint), Cmd: strings.Fields(test.cmd)}
		_, spec, refusal := contained(t, image, func(p *v1.Pod, _ *service.Service) {
			p.Spec.Containers[0].Command, p.Spec.Containers[0].Args = strings.Fields(test.command), strings.Fields(test.args)
		})
		if test.want == "" {
			if refusal == nil || !strings.Contains(refusal.Message, "no command specified") {
				t.Errorf("%+v: %v", test, refusal)
			}
			continue
		}
		if refusal != nil || strings.Join(spec.Process.Args, " ") != test.want {
			t.Errorf("%+v: %v, %v", test, spec.Process, refusal)
		}
	}
}

// TestUser: the pod's word, then the image's; names are of the image's files.
func TestUser(t *testing.T) {
	yes := true
	for what, test := range map[string]struct {
		image, user, group string
		nonRoot            bool
		want, refusal      string
	}{
		"nobody says":         {want: "0:0"},
		"image, by name":      {image: "app", want: "1000:1001+77"},
		"image, with a group": {image: "app:root", want: "1000:0+77"},
		"image, a number":     {image: "5000", want: "5000:0"},
		"pod":                 {image: "root", user: "1000", want: "1000:1001+77"},
		"pod, with a group":   {user: "1000", group: "9", want: "1000:9+77"},
		"pod's group alone":   {image: "app:root", group: "9", want: "1000:9+77"},
		"a name of nobody":    {image: "ghost", refusal: `user "ghost" is not to be found`},
		"root, not allowed":   {nonRoot: true, refusal: "image will run as root"},
		"root by number":      {image: "0:5", nonRoot: true, refusal: "image will run as root"},
		"root by the pod":     {user: "0", nonRoot: true, refusal: "breaks non-root policy"},
		"a name is not known": {image: "app", nonRoot: true, refusal: "non-numeric user (app)"},
		"a number will do":    {image: "1000:1001", nonRoot: true, want: "1000:1001+77"},
		"the pod's will do":   {image: "app", user: "7", nonRoot: true, want: "7:0"},
	} {
		_, spec, refusal := contained(t, Image{Cmd: []string{"x"}, User: test.image}, func(p *v1.Pod, s *service.Service) {
			s.Exec.User, s.Exec.Group = test.user, test.group
			if test.nonRoot {
				p.Spec.SecurityContext = &v1.PodSecurityContext{RunAsNonRoot: &yes}
			}
		})
		if test.refusal != "" {
			if refusal == nil || !strings.Contains(refusal.Message, test.refusal) || refusal.Config != test.nonRoot {
				t.Errorf("%s: %v", what, refusal)
			}
			continue
		}
		if refusal != nil {
			t.Errorf("%s: %v", what, refusal)
			continue
		}
		u := spec.Process.User
		got, _ := json.Marshal([]any{u.UID, u.GID, u.AdditionalGids})
		ids, more, _ := strings.Cut(test.want, "+")
		uid, gid, _ := strings.Cut(ids, ":")
		want := "[" + uid + "," + gid + ",null]"
		if more != "" {
			want = "[" + uid + "," + gid + ",[" + more + "]]"
		}
		if string(got) != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
}

// TestEnvironment: the image's, over it the container's, and a PATH in any case.
func TestEnvironment(t *testing.T) {
	_, spec, _ := contained(t, Image{Cmd: []string{"x"}, Env: []string{"A=image", "B=image"}}, func(_ *v1.Pod, s *service.Service) {
		s.Exec.Environment = append(s.Exec.Environment, "B=pod", "C=pod")
	})
	want := []string{usualPath, "A=image", "B=pod", "HOSTNAME=web-1", "C=pod"}
	if !slices.Equal(spec.Process.Env, want) {
		t.Errorf("%q, want %q", spec.Process.Env, want)
	}
	_, spec, _ = contained(t, Image{Cmd: []string{"x"}, Env: []string{"PATH=/bin"}}, func(p *v1.Pod, _ *service.Service) { p.Spec.HostNetwork = true })
	if want := []string{"PATH=/bin", "HOSTNAME=node-1"}; !slices.Equal(spec.Process.Env, want) || spec.Hostname != "" {
		t.Errorf("with the node's network: %q %q", spec.Process.Env, spec.Hostname)
	}
}

// TestSecurity has a row for each word about what a container may do.
func TestSecurity(t *testing.T) {
	yes := true
	caps := func(add, drop string) *v1.SecurityContext {
		c := &v1.Capabilities{}
		for _, n := range strings.Fields(add) {
			c.Add = append(c.Add, v1.Capability(n))
		}
		for _, n := range strings.Fields(drop) {
			c.Drop = append(c.Drop, v1.Capability(n))
		}
		return &v1.SecurityContext{Capabilities: c}
	}
	for what, test := range map[string]struct {
		context   *v1.SecurityContext
		has, lack string
	}{
		"usual":         {nil, "CAP_CHOWN CAP_NET_RAW", "CAP_SYS_ADMIN CAP_NET_ADMIN"},
		"add":           {caps("NET_ADMIN CAP_SYS_TIME", ""), "CAP_NET_ADMIN CAP_SYS_TIME CAP_CHOWN", "CAP_SYS_ADMIN"},
		"drop":          {caps("", "NET_RAW"), "CAP_CHOWN", "CAP_NET_RAW"},
		"drop all":      {caps("", "ALL"), "", "CAP_CHOWN"},
		"drop all, add": {caps("NET_BIND_SERVICE", "ALL"), "CAP_NET_BIND_SERVICE", "CAP_CHOWN"},
		"add all, drop": {caps("ALL", "SYS_ADMIN"), "CAP_SYS_TIME", "CAP_SYS_ADMIN"},
		"privileged":    {&v1.SecurityContext{Privileged: &yes}, "CAP_SYS_ADMIN CAP_BPF", ""},
	} {
		_, spec, _ := contained(t, Image{Cmd: []string{"x"}}, func(p *v1.Pod, _ *service.Service) { p.Spec.Containers[0].SecurityContext = test.context })
		for _, set := range [][]string{spec.Process.Capabilities.Bounding, spec.Process.Capabilities.Effective, spec.Process.Capabilities.Permitted} {
			for _, n := range strings.Fields(test.has) {
				if !slices.Contains(set, n) {
					t.Errorf("%s: no %s in %v", what, n, set)
				}
			}
			for _, n := range strings.Fields(test.lack) {
				if slices.Contains(set, n) {
					t.Errorf("%s: %s in %v", what, n, set)
				}
			}
		}
		if masks := len(spec.Linux.MaskedPaths) > 0; masks == (what == "privileged") || spec.Linux.Resources.Devices[0].Allow == masks {
			t.Errorf("%s: masked %v, devices %v", what, spec.Linux.MaskedPaths, spec.Linux.Resources.Devices)
		}
	}
}

// TestSeccomp: RuntimeDefault of the pod or the container filters system calls,
// and what a capability allows is allowed.
func TestSeccomp(t *testing.T) {
	yes := true
	profile := func(kind v1.SeccompProfileType) *v1.SeccompProfile { return &v1.SeccompProfile{Type: kind} }
	for what, test := range map[string]struct {
		pod, container *v1.SeccompProfile
		privileged     *bool
		want           bool
	}{
		"without a word":          {nil, nil, nil, false},
		"of the pod":              {profile(v1.SeccompProfileTypeRuntimeDefault), nil, nil, true},
		"of the container":        {nil, profile(v1.SeccompProfileTypeRuntimeDefault), nil, true},
		"not of the container":    {profile(v1.SeccompProfileTypeRuntimeDefault), profile(v1.SeccompProfileTypeUnconfined), nil, false},
		"never of the privileged": {profile(v1.SeccompProfileTypeRuntimeDefault), nil, &yes, false},
	} {
		_, spec, refusal := contained(t, Image{Cmd: []string{"x"}}, func(p *v1.Pod, _ *service.Service) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{SeccompProfile: test.pod}
			p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{SeccompProfile: test.container, Privileged: test.privileged}
		})
		if refusal != nil || (spec.Linux.Seccomp != nil) != test.want {
			t.Errorf("%s: %v, %v", what, spec.Linux.Seccomp != nil, refusal)
		}
	}
}

// TestNamespaces: each that the pod does not share with the host, and never one
// of the network.
func TestNamespaces(t *testing.T) {
	kinds := func(change func(*v1.Pod)) string {
		_, spec, _ := contained(t, Image{Cmd: []string{"x"}}, func(p *v1.Pod, _ *service.Service) { change(p) })
		var out []string
		for _, n := range spec.Linux.Namespaces {
			out = append(out, string(n.Type))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	for want, change := range map[string]func(*v1.Pod){
		"ipc mount pid uts": func(*v1.Pod) {},
		"ipc mount uts":     func(p *v1.Pod) { p.Spec.HostPID = true },
		"mount pid uts":     func(p *v1.Pod) { p.Spec.HostIPC = true },
		"ipc mount pid":     func(p *v1.Pod) { p.Spec.HostNetwork = true },
	} {
		if got := kinds(change); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// TestSharesPIDs: the PID namespace is then another container's, which has no
// right and no file.
func TestSharesPIDs(t *testing.T) {
	private := func(spec *specs.Spec) bool {
		return slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	}
	yes := true
	for _, test := range []struct {
		host bool
		want string
	}{{false, Holder}, {true, ""}} {
		s, spec, _ := contained(t, Image{Cmd: []string{"x"}}, func(p *v1.Pod, _ *service.Service) {
			p.Spec.ShareProcessNamespace, p.Spec.HostPID = &yes, test.host
		})
		if private(&spec) || s.Exec.Container.PIDs != test.want {
			t.Errorf("hostPID %v: in that of %q, its own: %v", test.host, s.Exec.Container.PIDs, private(&spec))
		}
	}
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u1"}}
	s, refusal := Hold(pod, &Runtime{Program: "/usr/sbin/runc", State: "/run/oci"}, "/pods/u1")
	if refusal != nil {
		t.Fatal(refusal)
	}
	var spec specs.Spec
	if err := json.Unmarshal(s.Exec.Container.Spec, &spec); err != nil {
		t.Fatal(err)
	}
	caps := spec.Process.Capabilities
	if !private(&spec) || !s.Exec.Container.Pauses || s.Exec.Container.Layers != nil || len(caps.Bounding)+len(caps.Effective)+len(caps.Permitted) > 0 || !spec.Root.Readonly {
		t.Errorf("the holder: %s", s.Exec.Container.Spec)
	}
	// Its first process is deaf to all other signals.
	if s.Kill.Signal != 9 || !slices.Equal(s.SuccessStatus.Signals, []int{9}) || s.Restart.Mode != service.RestartAlways {
		t.Errorf("its end: %+v", s)
	}
}

// TestCommands: the runtime runs in the foreground, hooks and probes in the
// container, and what a runtime that was killed left is removed.
func TestCommands(t *testing.T) {
	score := -997
	s, spec, refusal := contained(t, Image{Cmd: []string{"x"}, StopSignal: "SIGQUIT", WorkingDir: "/srv", Copied: true}, func(p *v1.Pod, s *service.Service) {
		s.Exec.OOMScoreAdjust = &score
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Sleep: &v1.SleepAction{Seconds: 2}}}
		s.Stop = []service.Command{{Path: "sleep", Argv: []string{"sleep", "2"}, IgnoreFailure: true}}
		s.StartPost = []service.Command{{Path: "warm", Argv: []string{"warm", "up"}}, {Path: "GET 10.0.0.7:80/", HTTP: &service.HTTPProbe{Port: 80}}}
		s.Liveness = &service.Probe{Exec: &service.Command{Path: "ok", Argv: []string{"ok"}}}
		s.Exec.Mounts = []service.Mount{{Source: "/x", Target: "/etc/hosts"}, {Source: "/y", Target: "/dev/shm"}}
	})
	if refusal != nil {
		t.Fatal(refusal)
	}
	line := func(c service.Command) string { return c.Path + ": " + strings.Join(c.Argv, " ") }
	const id = "pod-u1-c"
	for what, pair := range map[string][2]string{
		"start":    {line(s.Start[0]), "/usr/sbin/runc: runc --log /pods/u1/containers/c/runtime.log --log-format json --root /run/oci run --bundle /pods/u1/containers/c --detach --pid-file /pods/u1/containers/c/pid " + id},
		"after":    {line(s.StopPost[0]), "/usr/sbin/runc: runc --root /run/oci delete --force " + id},
		"hook":     {line(s.StartPost[0]), "/usr/sbin/runc: runc --root /run/oci exec " + id + " warm up"},
		"sleep":    {line(s.Stop[0]), "sleep: sleep 2"},
		"liveness": {line(*s.Liveness.Exec), "/usr/sbin/runc: runc --root /run/oci exec " + id + " ok"},
		"copy":     {line(s.StartPre[2]), "cp: cp -a --reflink=auto /images/a /pods/u1/containers/c/rootfs"},
		"cwd":      {spec.Process.Cwd, "/srv"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %s, want %s", what, pair[0], pair[1])
		}
	}
	if s.Start[0].FullPrivileges || !s.StopPost[0].FullPrivileges || !s.Stop[0].FullPrivileges || !s.StopPost[0].IgnoreFailure || !s.Stop[0].IgnoreFailure {
		t.Errorf("the commands' prefixes: %+v", s)
	}
	if s.StartPost[1].HTTP == nil || len(s.StartPost[1].Argv) > 0 {
		t.Errorf("a request is made by legiond itself: %+v", s.StartPost[1])
	}
	// A runtime that may not lower the score would refuse to start.
	if s.Exec.OOMScoreAdjust != &score || spec.Process.OOMScoreAdj != nil {
		t.Errorf("the score is inherited: %v, %v", s.Exec.OOMScoreAdjust, spec.Process.OOMScoreAdj)
	}
	if s.Kill.Signal != 3 {
		t.Errorf("signal %d", s.Kill.Signal)
	}
	for _, m := range spec.Mounts {
		if m.Destination == "/etc/hosts" || m.Destination == "/dev/shm" {
			t.Errorf("%s is mounted beside the volume", m.Destination)
		}
	}
	if _, _, refusal := contained(t, Image{Cmd: []string{"x"}, StopSignal: "SIGNONE"}, nil); refusal == nil || !strings.Contains(refusal.Message, "STOPSIGNAL") {
		t.Errorf("no signal: %v", refusal)
	}
}

// TestTerminal: a runtime that does not stay passes the terminal on by a socket;
// one that stays until the container ends has one of its own.
func TestTerminal(t *testing.T) {
	const socket = "--console-socket " + service.ConsoleSocket
	for _, kind := range []service.Type{service.Exec, service.Oneshot} {
		s, spec, refusal := contained(t, Image{Cmd: []string{"x"}, Env: []string{"TERM=dumb"}}, func(_ *v1.Pod, s *service.Service) {
			s.Type, s.Exec.Console = kind, &service.Console{Terminal: true}
			s.Exec.Environment = []string{"TERM=xterm"}
		})
		if refusal != nil {
			t.Fatal(refusal)
		}
		if has := strings.Contains(strings.Join(s.Start[0].Argv, " "), socket); has != (kind != service.Oneshot) {
			t.Errorf("%s: %q", kind, s.Start[0].Argv)
		}
		if !spec.Process.Terminal || !slices.Contains(spec.Process.Env, "TERM=xterm") || !s.Exec.Terminal() {
			t.Errorf("%s: %+v", kind, spec.Process)
		}
	}
	s, spec, _ := contained(t, Image{Cmd: []string{"x"}}, func(_ *v1.Pod, s *service.Service) {
		s.Exec.Console = &service.Console{Stdin: true}
	})
	if spec.Process.Terminal || slices.Contains(s.Start[0].Argv, "--console-socket") {
		t.Errorf("with a pipe alone: %q, %+v", s.Start[0].Argv, spec.Process)
	}
}

// TestHostname follows the kubelet: the pod's name or what it says, cut at 63,
// and the full one where it wants that.
func TestHostname(t *testing.T) {
	yes, override := true, "any.name.example"
	long := strings.Repeat("x", 60)
	for what, test := range map[string]struct {
		change           func(*v1.PodSpec)
		want, full, fail string
	}{
		"the pod's":         {func(*v1.PodSpec) {}, "web-1", "", ""},
		"its own":           {func(s *v1.PodSpec) { s.Hostname = "a" }, "a", "", ""},
		"of a subdomain":    {func(s *v1.PodSpec) { s.Hostname, s.Subdomain = "a", "b" }, "a", "a.b.prod.svc.c.example", ""},
		"the full one":      {func(s *v1.PodSpec) { s.Subdomain, s.SetHostnameAsFQDN = "b", &yes }, "web-1.b.prod.svc.c.example", "web-1.b.prod.svc.c.example", ""},
		"no full one":       {func(s *v1.PodSpec) { s.SetHostnameAsFQDN = &yes }, "web-1", "", ""},
		"a full one":        {func(s *v1.PodSpec) { s.Hostname, s.Subdomain, s.SetHostnameAsFQDN = long, "b", &yes }, "", "", "81 characters"},
		"in place of all":   {func(s *v1.PodSpec) { s.Hostname, s.Subdomain, s.HostnameOverride = "a", "b", &override }, override, "", ""},
		"of the node's net": {func(s *v1.PodSpec) { s.Hostname, s.HostNetwork = "a", true }, "", "", ""},
	} {
		var pod *v1.Pod
		s, spec, refusal := containedIn(t, Image{Cmd: []string{"x"}}, "c.example", func(p *v1.Pod, _ *service.Service) { test.change(&p.Spec); pod = p })
		if test.fail != "" {
			if refusal == nil || !strings.Contains(refusal.Message, test.fail) {
				t.Errorf("%s: %v", what, refusal)
			}
			continue
		}
		if refusal != nil || spec.Hostname != test.want {
			t.Errorf("%s: %q, want %q (%v)", what, spec.Hostname, test.want, refusal)
		}
		if _, full := Names(pod, "c.example"); full != test.full {
			t.Errorf("%s: %q in full, want %q", what, full, test.full)
		}
		if env := "HOSTNAME=" + test.want; test.want != "" && !slices.Contains(spec.Process.Env, env) {
			t.Errorf("%s: %q, want %s (%s)", what, spec.Process.Env, env, s.Name)
		}
	}
}

// TestSysctls: only those that are the containers' own.
func TestSysctls(t *testing.T) {
	for _, host := range []bool{false, true} {
		_, spec, _ := contained(t, Image{Cmd: []string{"x"}}, func(p *v1.Pod, _ *service.Service) {
			p.Spec.HostIPC = host
			p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: "kernel.shm_rmid_forced", Value: "1"}, {Name: "net.ipv4.tcp_syncookies", Value: "0"}}}
		})
		if got := spec.Linux.Sysctl; len(got) > 1 || got["kernel.shm_rmid_forced"] == "1" == host {
			t.Errorf("hostIPC %v: %v", host, got)
		}
	}
}
