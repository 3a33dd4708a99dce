package ocispec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// mostHostname is how long a host name of Linux may be, without the byte at its
// end; a short one is cut before (the kubelet's truncatePodHostnameIfNeeded).
const mostHostname, cutHostname = 64, 63

// Names are a pod's own host name and the full one, which is empty where the pod
// has no subdomain.
func Names(pod *v1.Pod, domain string) (host, full string) {
	s := &pod.Spec
	if host = pod.Name; s.Hostname != "" {
		host = s.Hostname
	}
	if s.HostnameOverride != nil {
		host = *s.HostnameOverride
	}
	if len(host) > cutHostname {
		host = strings.TrimRight(host[:cutHostname], "-.")
	}
	if s.Subdomain != "" && s.HostnameOverride == nil {
		full = fmt.Sprintf("%s.%s.%s.svc.%s", host, s.Subdomain, pod.Namespace, domain)
	}
	return host, full
}

// Hostname is the one that the pod's containers have.
func Hostname(pod *v1.Pod, domain string) (string, *Refusal) {
	host, full := Names(pod, domain)
	if asked := pod.Spec.SetHostnameAsFQDN; asked == nil || !*asked || full == "" {
		return host, nil
	}
	if len(full) > mostHostname {
		return host, &Refusal{Message: fmt.Sprintf("setHostnameAsFQDN: the host name %s has %d characters, and %d are the most", full, len(full), mostHostname)}
	}
	return full, nil
}
