package podspec

import (
	"cmp"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/service"
)

// etcVolume holds the files of /etc that a pod sees in place of the node's. No
// volume of a pod can have its name: it has a dot.
const etcVolume = "etc.legion"

// The kubelet's bounds (pkg/apis/core/validation).
const (
	mostNameservers = 3
	mostSearches    = 32
)

// ReadsEtc says whether compiling the pod looks at Node.Hosts and Node.Resolver.
func ReadsEtc(pod *v1.Pod, node Node) bool {
	s, c := &pod.Spec, compiler{pod: pod, node: node}
	return len(s.HostAliases) > 0 || s.DNSPolicy == v1.DNSNone || s.DNSConfig != nil || named(pod) || c.clusterDNS()
}

// named: the pod says what its host's name is, and has one of its own.
func named(pod *v1.Pod) bool {
	s := &pod.Spec
	return OCI(pod) && !s.HostNetwork && (s.Hostname != "" || s.Subdomain != "" || s.HostnameOverride != nil)
}

// usualDomain is the cluster's domain unless the node knows better.
const usualDomain = "cluster.local"

func (n Node) domain() string { return cmp.Or(n.ClusterDomain, usualDomain) }

// clusterDNS says whether the pod's names are looked up by the cluster's DNS; a
// pod in the node's network has to ask for that (dnsPolicy).
func (c *compiler) clusterDNS() bool {
	s := &c.pod.Spec
	own := OCI(c.pod) && !s.HostNetwork
	return len(c.node.ClusterDNS) > 0 && (s.DNSPolicy == v1.DNSClusterFirstWithHostNet || own && (s.DNSPolicy == v1.DNSClusterFirst || s.DNSPolicy == ""))
}

// clusterResolver is resolv.conf(5) for the cluster's DNS, with the searches of
// the node after its own.
func (c *compiler) clusterResolver() string {
	domain := c.node.domain()
	searches := []string{c.pod.Namespace + ".svc." + domain, "svc." + domain, domain}
	for line := range strings.Lines(c.node.Resolver) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "search" {
			searches = append(searches, words[1:]...)
		}
	}
	return "search " + strings.Join(searches, " ") + "\nnameserver " + strings.Join(c.node.ClusterDNS, "\nnameserver ") + "\noptions ndots:5\n"
}

// etcFiles are those that the pod asks to be others than the node's.
func (c *compiler) etcFiles() map[string]VolumeFile {
	s := &c.pod.Spec
	files := map[string]VolumeFile{}
	var own []v1.HostAlias
	if named(c.pod) {
		host, full := ocispec.Names(c.pod, c.node.domain())
		own = []v1.HostAlias{{IP: c.node.IP, Hostnames: strings.Fields(full + " " + host)}}
	}
	if list := append(own, s.HostAliases...); len(list) > 0 {
		files["hosts"] = VolumeFile{Data: []byte(hosts(c.node.Hosts, list)), Mode: 0o644}
	}
	if s.DNSPolicy == v1.DNSNone || s.DNSConfig != nil || c.clusterDNS() {
		base := c.node.Resolver
		switch {
		case s.DNSPolicy == v1.DNSNone:
			base = ""
		case c.clusterDNS():
			base = c.clusterResolver()
		}
		files["resolv.conf"] = VolumeFile{Data: []byte(resolver(base, s.DNSConfig)), Mode: 0o644}
	}
	return files
}

// etcMounts show them to a container, but for what it mounts there itself.
func (c *compiler) etcMounts(ctr *v1.Container) []service.Mount {
	var out []service.Mount
	for _, name := range []string{"hosts", "resolv.conf"} {
		target := "/etc/" + name
		own := slices.ContainsFunc(ctr.VolumeMounts, func(m v1.VolumeMount) bool { return path.Clean(m.MountPath) == target })
		if _, ok := c.etcFiles()[name]; ok && !own {
			source := VolumeDir(c.node.PodDir, string(c.pod.UID), etcVolume)
			out = append(out, service.Mount{Source: source, SubPath: name, Target: target, ReadOnly: true})
		}
	}
	return out
}

// hosts is hosts(5) of the node with a pod's hostAliases.
func hosts(base string, aliases []v1.HostAlias) string {
	var b strings.Builder
	b.WriteString(base)
	if base != "" && !strings.HasSuffix(base, "\n") {
		b.WriteString("\n")
	}
	b.WriteString("# of the pod\n")
	for _, a := range aliases {
		b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
	}
	return b.String()
}

// resolver is resolv.conf(5) with what a dnsConfig adds: an option takes the
// place of one of its name.
func resolver(base string, config *v1.PodDNSConfig) string {
	var servers, searches, options []string
	for line := range strings.Lines(base) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			servers = append(servers, words[1])
		case "search", "domain":
			searches = words[1:]
		case "options":
			options = append(options, words[1:]...)
		}
	}
	if config != nil {
		servers = append(servers, config.Nameservers...)
		searches = append(slices.Clone(searches), config.Searches...)
		for _, o := range config.Options {
			options = slices.DeleteFunc(options, func(old string) bool {
				name, _, _ := strings.Cut(old, ":")
				return name == o.Name
			})
			option := o.Name
			if o.Value != nil && *o.Value != "" {
				option += ":" + *o.Value
			}
			options = append(options, option)
		}
	}
	servers, searches = once(servers, mostNameservers), once(searches, mostSearches)
	var b strings.Builder
	if len(searches) > 0 {
		b.WriteString("search " + strings.Join(searches, " ") + "\n")
	}
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(options) > 0 {
		b.WriteString("options " + strings.Join(options, " ") + "\n")
	}
	return b.String()
}

// once leaves out what is there already, and what is more than most.
func once(list []string, most int) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) && len(out) < most {
			out = append(out, s)
		}
	}
	return out
}
