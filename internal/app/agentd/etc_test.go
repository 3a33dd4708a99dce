package agentd

import (
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// surroundings: a pod sees its own hosts and resolver, and RuntimeDefault keeps
// calls from it.
func (f *fleet) surroundings(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes mounts")
	}
	f.create("etc", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.HostAliases = []v1.HostAlias{{IP: "10.1.2.3", Hostnames: []string{"a", "b"}}}
		p.Spec.DNSPolicy, p.Spec.DNSConfig = v1.DNSNone, &v1.PodDNSConfig{Nameservers: []string{"10.9.9.9"}}
		p.Spec.SecurityContext = &v1.PodSecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault}}
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{Capabilities: &v1.Capabilities{Drop: []v1.Capability{"ALL"}}}
	}, "sh", "-c", "tail -n 1 /etc/hosts; cat /etc/resolv.conf; grep Seccomp: /proc/self/status; unshare --user true || echo refused")
	p := f.pod("etc", func(p *v1.Pod) bool { return phase(v1.PodSucceeded)(p) || phase(v1.PodFailed)(p) })
	text, err := f.log("etc", v1.PodLogOptions{Follow: true})
	for _, want := range []string{"10.1.2.3\ta\tb\n", "nameserver 10.9.9.9\n", "Seccomp:\t2\n", "refused\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("log %q (%v) lacks %q", text, err, want)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "legion.dev/NotHonoured" && c.Status != v1.ConditionFalse {
			t.Errorf("not honoured: %s", c.Message)
		}
	}
	for _, name := range []string{"/etc/hosts", "/etc/resolv.conf"} {
		if here, _ := os.ReadFile(name); strings.Contains(string(here), "10.1.2.3\ta") || strings.Contains(string(here), "10.9.9.9") {
			t.Errorf("the host's own %s is %q", name, here)
		}
	}
}
