package podspec

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestResolver(t *testing.T) {
	three := "3"
	const base = "# by hand\ndomain old\nsearch a b\nnameserver 10.0.0.1\noptions ndots:1 edns0\n"
	for name, test := range map[string]struct {
		base   string
		config *v1.PodDNSConfig
		want   string
	}{
		"nothing": {"", nil, ""},
		"none":    {"", &v1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}}, "nameserver 1.1.1.1\n"},
		"more": {
			base,
			&v1.PodDNSConfig{
				Nameservers: []string{"1.1.1.1", "10.0.0.1", "2.2.2.2", "3.3.3.3"}, Searches: []string{"b", "c"},
				Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &three}, {Name: "rotate"}},
			},
			"search a b c\nnameserver 10.0.0.1\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions edns0 ndots:3 rotate\n",
		},
		"as it is": {base, &v1.PodDNSConfig{}, "search a b\nnameserver 10.0.0.1\noptions ndots:1 edns0\n"},
	} {
		if got := resolver(test.base, test.config); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func TestHosts(t *testing.T) {
	aliases := []v1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"a", "b.c"}}}
	for base, want := range map[string]string{
		"":                      "# hostAliases of the pod\n10.1.2.3\ta\tb.c\n",
		"127.0.0.1 localhost":   "127.0.0.1 localhost\n# hostAliases of the pod\n10.1.2.3\ta\tb.c\n",
		"127.0.0.1 localhost\n": "127.0.0.1 localhost\n# hostAliases of the pod\n10.1.2.3\ta\tb.c\n",
	} {
		if got := hosts(base, aliases); got != want {
			t.Errorf("%q: %q, want %q", base, got, want)
		}
	}
}

// TestSeccomp: what RuntimeDefault refuses hangs on the capabilities.
func TestSeccomp(t *testing.T) {
	profile := func(kind v1.SeccompProfileType) *v1.SeccompProfile { return &v1.SeccompProfile{Type: kind} }
	yes := true
	for name, test := range map[string]struct {
		pod  *v1.SeccompProfile
		ctr  *v1.SecurityContext
		want string // filter, empty for none
	}{
		"nothing":    {nil, nil, ""},
		"of the pod": {profile(v1.SeccompProfileTypeRuntimeDefault), nil, always},
		"unconfined": {profile(v1.SeccompProfileTypeRuntimeDefault), &v1.SecurityContext{SeccompProfile: profile(v1.SeccompProfileTypeUnconfined)}, ""},
		"privileged": {profile(v1.SeccompProfileTypeRuntimeDefault), &v1.SecurityContext{Privileged: &yes}, ""},
		"all dropped but the clock": {
			nil,
			&v1.SecurityContext{SeccompProfile: profile(v1.SeccompProfileTypeRuntimeDefault), Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}, Add: []v1.Capability{"SYS_TIME", "SYS_ADMIN", "SYSLOG", "BPF", "PERFMON", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_PACCT", "SYS_RAWIO", "SYS_NICE"}}},
			always + " open_by_handle_at vhangup",
		},
	} {
		t.Run(name, func(t *testing.T) {
			class := HostRuntime
			pod := &v1.Pod{Spec: v1.PodSpec{
				RuntimeClassName: &class, SecurityContext: &v1.PodSecurityContext{SeccompProfile: test.pod},
				Containers: []v1.Container{{Name: "c", Command: []string{"x"}, SecurityContext: test.ctr}},
			}}
			g, report := Compile(pod, node, nil)
			got := ""
			if x := g.Services[0].Exec.Sandbox; x != nil {
				got = x.SystemCallFilter[0]
			}
			if got != test.want || len(report.NotHonoured) > 0 {
				t.Errorf("%q, want %q; not honoured: %q", got, test.want, report.NotHonoured)
			}
		})
	}
}
