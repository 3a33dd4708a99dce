package podspec

import (
	"testing"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
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
		"":                      "# of the pod\n10.1.2.3\ta\tb.c\n",
		"127.0.0.1 localhost":   "127.0.0.1 localhost\n# of the pod\n10.1.2.3\ta\tb.c\n",
		"127.0.0.1 localhost\n": "127.0.0.1 localhost\n# of the pod\n10.1.2.3\ta\tb.c\n",
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

// TestClusterDNS: who asks for the cluster's DNS has it where there is one, as
// have pods that are not in the node's network by their own word.
func TestClusterDNS(t *testing.T) {
	const own = "search prod.svc.c.example svc.c.example c.example node.example\nnameserver 10.96.0.10\noptions ndots:5\n"
	for name, test := range map[string]struct {
		class  string
		policy v1.DNSPolicy
		net    bool
		dns    []string
		want   string
		remark bool
	}{
		"usual":                {OCIRuntime, v1.DNSClusterFirst, false, []string{"10.96.0.10"}, own, false},
		"asked for":            {HostRuntime, v1.DNSClusterFirstWithHostNet, false, []string{"10.96.0.10"}, own, false},
		"in the node's":        {OCIRuntime, v1.DNSClusterFirst, true, []string{"10.96.0.10"}, "", false},
		"a process":            {HostRuntime, v1.DNSClusterFirst, false, []string{"10.96.0.10"}, "", false},
		"not wanted":           {OCIRuntime, v1.DNSDefault, false, []string{"10.96.0.10"}, "", false},
		"none":                 {OCIRuntime, v1.DNSClusterFirst, false, nil, "", false},
		"none, but asked for":  {OCIRuntime, v1.DNSClusterFirstWithHostNet, true, nil, "", true},
		"one of the pod's own": {OCIRuntime, v1.DNSNone, false, []string{"10.96.0.10"}, "nameserver 10.9.9.9\n", false},
	} {
		pod := &v1.Pod{Spec: v1.PodSpec{RuntimeClassName: &test.class, DNSPolicy: test.policy, HostNetwork: test.net, Containers: []v1.Container{{Name: "c", Command: []string{"x"}}}}}
		pod.Namespace = "prod"
		if test.policy == v1.DNSNone {
			pod.Spec.DNSConfig = &v1.PodDNSConfig{Nameservers: []string{"10.9.9.9"}}
		}
		n := node
		n.OCI, n.ClusterDNS, n.ClusterDomain, n.Resolver = &ocispec.Runtime{}, test.dns, "c.example", "search node.example\nnameserver 10.0.0.1\n"
		got := ""
		for _, v := range Volumes(pod, n, nil) {
			got += string(v.Files["resolv.conf"].Data)
		}
		_, report := Compile(pod, n, nil)
		if got != test.want || ReadsEtc(pod, n) != (test.want != "") || len(report.Remarks) > 0 != test.remark || len(report.NotHonoured) > 0 {
			t.Errorf("%s: %q, want %q; %+v", name, got, test.want, report)
		}
	}
}
