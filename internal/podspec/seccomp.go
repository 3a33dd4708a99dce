package podspec

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
)

// always are the calls that RuntimeDefault refuses to every container: what OCI
// runtimes refuse by default (Docker's and containerd's documents).
const always = "~@obsolete @swap add_key keyctl request_key kexec_load kexec_file_load pivot_root userfaultfd"

// unless are those that it refuses to one without the capability.
var unless = []struct{ capability, calls string }{
	{"CAP_BPF", "bpf"},
	{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
	{"CAP_PERFMON", "perf_event_open"},
	{"CAP_SYS_ADMIN", "fanotify_init fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree quotactl quotactl_fd setdomainname sethostname umount2"},
	{"CAP_SYS_BOOT", "reboot"},
	{"CAP_SYS_CHROOT", "chroot"},
	{"CAP_SYS_MODULE", "@module"},
	{"CAP_SYS_NICE", "mbind set_mempolicy"},
	{"CAP_SYS_PACCT", "acct"},
	{"CAP_SYS_RAWIO", "ioperm iopl"},
	{"CAP_SYS_TIME", "clock_settime settimeofday"},
	{"CAP_SYS_TTY_CONFIG", "vhangup"},
	{"CAP_SYSLOG", "syslog"},
}

// seccomp is the filter of the container's seccompProfile, or else the pod's.
func (c *compiler) seccomp(ctr *v1.Container, at string, exec *service.ExecContext) {
	var profile *v1.SeccompProfile
	if p := c.pod.Spec.SecurityContext; p != nil && p.SeccompProfile != nil {
		profile, at = p.SeccompProfile, "spec"
	}
	if s := ctr.SecurityContext; s != nil {
		if isTrue(s.Privileged) {
			return
		}
		if s.SeccompProfile != nil {
			profile = s.SeccompProfile
		}
	}
	switch {
	case profile == nil || profile.Type == v1.SeccompProfileTypeUnconfined:
		return
	case profile.Type == v1.SeccompProfileTypeRuntimeDefault && OCI(c.pod):
		// Its runtime is given a profile (ocispec.Contain).
	case profile.Type != v1.SeccompProfileTypeRuntimeDefault:
		c.miss("%s.securityContext.seccompProfile", at)
		return
	}
	has := func(capability string) bool {
		b := exec.CapabilityBoundingSet
		return b == nil || slices.Contains(*b, capability)
	}
	calls := []string{always}
	for _, u := range unless {
		if !has(u.capability) {
			calls = append(calls, u.calls)
		}
	}
	exec.Sandbox = &service.Sandbox{SystemCallFilter: []string{strings.Join(calls, " ")}, SystemCallErrorNumber: "EPERM"}
	if !has("CAP_SYS_ADMIN") {
		exec.Sandbox.RestrictNamespaces = &[]string{}
	}
}
