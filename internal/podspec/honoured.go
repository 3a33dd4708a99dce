package podspec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
)

// podFields lists what the pod's own fields ask for in vain. Fields that are
// the scheduler's, or that a process of the host has anyway (hostNetwork,
// hostPID, hostIPC, shareProcessNamespace), are not among them.
func (c *compiler) podFields() {
	s := &c.pod.Spec
	when := func(asked bool, field string) {
		if asked {
			c.miss("spec.%s", field)
		}
	}
	if !c.node.Root {
		for i := range s.Volumes {
			c.volume(i)
		}
	}
	when((s.DNSPolicy == v1.DNSNone || c.clusterDNS()) && !c.node.Root, "dnsPolicy")
	if s.DNSPolicy == v1.DNSClusterFirstWithHostNet && len(c.node.ClusterDNS) == 0 {
		c.report.Remarks = append(c.report.Remarks, "dnsPolicy ClusterFirstWithHostNet: the node knows of no DNS of a cluster (legion-agent --cluster-dns), so the pod has the node's, as with Default")
	}
	when(s.DNSConfig != nil && !c.node.Root, "dnsConfig")
	when(len(s.HostAliases) > 0 && !c.node.Root, "hostAliases")
	when(s.Hostname != "" && !OCI(c.pod), "hostname")
	when(s.HostnameOverride != nil && !OCI(c.pod), "hostnameOverride")
	when(s.Subdomain != "" && !OCI(c.pod), "subdomain")
	when(isTrue(s.SetHostnameAsFQDN) && !OCI(c.pod), "setHostnameAsFQDN")
	when(ocispec.OwnUsers(c.pod) && !OCI(c.pod), "hostUsers")
	when(len(s.ResourceClaims) > 0, "resourceClaims")
	when(s.Resources != nil && c.unbounded(s.Resources.Limits), "resources.limits")
	if p := s.SecurityContext; p != nil {
		when(p.FSGroup != nil && !c.node.Root, "securityContext.fsGroup")
		when(p.SELinuxOptions != nil, "securityContext.seLinuxOptions")
		when(p.AppArmorProfile != nil && p.AppArmorProfile.Type != v1.AppArmorProfileTypeUnconfined, "securityContext.appArmorProfile")
		when(slices.ContainsFunc(p.Sysctls, func(s v1.Sysctl) bool { return !ocispec.OwnSysctl(c.pod, s.Name) || !OCI(c.pod) }), "securityContext.sysctls")
	}
}

// containerFields lists what a container's fields ask for in vain. Requests
// are honoured where pods are placed; image and imagePullPolicy have no meaning
// for a process of the host.
func (c *compiler) containerFields(ctr *v1.Container, at string) {
	when := func(asked bool, field string) {
		if asked {
			c.miss("%s.%s", at, field)
		}
	}
	when(c.unbounded(ctr.Resources.Limits), "resources.limits")
	when(len(ctr.Resources.Claims) > 0, "resources.claims")
	when(len(ctr.VolumeDevices) > 0, "volumeDevices")
	when(!c.node.Root && ctr.TerminationMessagePath != "" && ctr.TerminationMessagePath != v1.TerminationMessagePathDefault, "terminationMessagePath")
	if !c.node.Root {
		for i, m := range ctr.VolumeMounts {
			c.mount(m, fmt.Sprintf("%s.volumeMounts[%d]", at, i))
		}
	}
	if s := ctr.SecurityContext; s != nil {
		when(!c.node.Root && s.Capabilities != nil && len(s.Capabilities.Add)+len(s.Capabilities.Drop) > 0, "securityContext.capabilities")
		when(isTrue(s.ReadOnlyRootFilesystem) && !c.node.Root, "securityContext.readOnlyRootFilesystem")
		when(s.SELinuxOptions != nil, "securityContext.seLinuxOptions")
		when(s.AppArmorProfile != nil && s.AppArmorProfile.Type != v1.AppArmorProfileTypeUnconfined, "securityContext.appArmorProfile")
	}
}

// unbounded says whether one of the limits is not kept.
func (c *compiler) unbounded(limits v1.ResourceList) bool {
	for name := range limits {
		if !c.node.Root || !boundable(name) {
			return true
		}
	}
	return false
}

// volume reports a volume with no effect where only root could mount it. A hostPath needs no work: the mounts
// tell whether the container sees it where it looks.
func (c *compiler) volume(i int) {
	v := &c.pod.Spec.Volumes[i]
	switch {
	case v.HostPath != nil:
		if t := v.HostPath.Type; t != nil && *t != v1.HostPathUnset {
			c.miss("spec.volumes[%d].hostPath.type", i)
		}
	case isTokenVolume(v):
		c.report.Quiet = append(c.report.Quiet, fmt.Sprintf("spec.volumes[%d] (the service account's token)", i))
	default:
		c.miss("spec.volumes[%d]", i)
	}
}

// mount reports a mount with no effect. A hostPath mounted where it is on the
// host is there already.
func (c *compiler) mount(m v1.VolumeMount, at string) {
	var v *v1.Volume
	for i := range c.pod.Spec.Volumes {
		if c.pod.Spec.Volumes[i].Name == m.Name {
			v = &c.pod.Spec.Volumes[i]
		}
	}
	switch {
	case v != nil && isTokenVolume(v):
	case v != nil && v.HostPath != nil && m.SubPath == "" && m.SubPathExpr == "" && path.Clean(v.HostPath.Path) == path.Clean(m.MountPath):
		if m.ReadOnly {
			c.miss("%s.readOnly", at)
		}
	default:
		c.miss("%s", at)
	}
}

// isTokenVolume: the volume that service account admission gives every pod.
func isTokenVolume(v *v1.Volume) bool {
	return v.Projected != nil && strings.HasPrefix(v.Name, "kube-api-access-")
}
