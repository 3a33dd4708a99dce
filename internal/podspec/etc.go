package podspec

import (
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

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
func ReadsEtc(pod *v1.Pod) bool {
	s := &pod.Spec
	return len(s.HostAliases) > 0 || s.DNSPolicy == v1.DNSNone || s.DNSConfig != nil
}

// etcFiles are those that the pod asks to be others than the node's.
func (c *compiler) etcFiles() map[string]VolumeFile {
	s := &c.pod.Spec
	files := map[string]VolumeFile{}
	if len(s.HostAliases) > 0 {
		files["hosts"] = VolumeFile{Data: []byte(hosts(c.node.Hosts, s.HostAliases)), Mode: 0o644}
	}
	if s.DNSPolicy == v1.DNSNone || s.DNSConfig != nil {
		base := c.node.Resolver
		if s.DNSPolicy == v1.DNSNone {
			base = ""
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
	b.WriteString("# hostAliases of the pod\n")
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
