package ocispec

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// usual are the capabilities that a container has without a word: those that
// containerd and docker give.
var usual = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

func privileged(s *v1.SecurityContext) bool { return s != nil && s.Privileged != nil && *s.Privileged }

// capabilities are the usual ones, without drop and with add; what is added by
// name stays though all are dropped.
func capabilities(s *v1.SecurityContext) []string {
	if privileged(s) {
		return slices.Clone(unitfile.Capabilities)
	}
	add, drop := map[string]bool{}, map[string]bool{}
	if s != nil && s.Capabilities != nil {
		note := func(into map[string]bool, list []v1.Capability) {
			for _, c := range list {
				into["CAP_"+strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")] = true
			}
		}
		note(add, s.Capabilities.Add)
		note(drop, s.Capabilities.Drop)
	}
	out := []string{}
	for _, c := range unitfile.Capabilities {
		has := slices.Contains(usual, c) && !drop["CAP_ALL"] || add["CAP_ALL"]
		if (has && !drop[c]) || add[c] {
			out = append(out, c)
		}
	}
	return out
}

// The paths of /proc and /sys that containers do not see, or cannot write to:
// those of containerd and docker.
var (
	masked = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// OwnSysctl says whether a pod may set a parameter of the kernel: one that the
// kubelet calls safe, of a namespace that the containers do not share with the
// node (pkg/kubelet/sysctl/safe_sysctls.go).
func OwnSysctl(pod *v1.Pod, name string) bool {
	return name == "kernel.shm_rmid_forced" && !pod.Spec.HostIPC
}

// OwnUsers says whether the containers of a pod are in a user namespace.
func OwnUsers(pod *v1.Pod) bool { return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers }

// sysfs is /sys. A user namespace cannot mount it anew: it shows the network
// namespace, which is the node's.
func (in *Input) sysfs(mode string) specs.Mount {
	if OwnUsers(in.Pod) {
		return bind("/sys", "/sys", "nosuid", "noexec", "nodev", mode)
	}
	return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}}
}

// linux are the namespaces and what the kernel shows. There is no network
// namespace: pods use the node's network.
func (in *Input) linux() *specs.Linux {
	ps, cs := &in.Pod.Spec, in.Container.SecurityContext
	l := &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}}
	for _, n := range []struct {
		kind  specs.LinuxNamespaceType
		other bool // it has the host's, or which one is known at its start
	}{{specs.PIDNamespace, ps.HostPID || SharesPIDs(in.Pod) || in.Target != ""}, {specs.IPCNamespace, ps.HostIPC}, {specs.UTSNamespace, ps.HostNetwork}} {
		if !n.other {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: n.kind})
		}
	}
	if p := ps.SecurityContext; p != nil {
		for _, s := range p.Sysctls {
			if OwnSysctl(in.Pod, s.Name) {
				if l.Sysctl == nil {
					l.Sysctl = map[string]string{}
				}
				l.Sysctl[s.Name] = s.Value
			}
		}
	}
	l.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: privileged(cs), Access: "rwm"}}}
	if !privileged(cs) && (cs == nil || cs.ProcMount == nil || *cs.ProcMount != v1.UnmaskedProcMount) {
		l.MaskedPaths, l.ReadonlyPaths = masked, readOnly
	}
	for _, m := range in.Container.VolumeMounts {
		if p := m.MountPropagation; p != nil && *p == v1.MountPropagationBidirectional {
			l.RootfsPropagation = "rshared"
		} else if p != nil && *p == v1.MountPropagationHostToContainer && l.RootfsPropagation == "" {
			l.RootfsPropagation = "rslave"
		}
	}
	return l
}

// mounts are those of every container; the volumes come after them.
func (in *Input) mounts(s *service.Service) []specs.Mount {
	all := privileged(in.Container.SecurityContext)
	mode := "ro"
	if all {
		mode = "rw"
	}
	out := []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}}}
	if all {
		// It has all devices of the node, also those that come later.
		out = append(out, bind("/dev", "/dev", "rw", "rslave"))
	} else {
		out = append(out,
			specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}})
		if in.Pod.Spec.HostIPC {
			out = append(out, bind("/dev/shm", "/dev/shm", "rw", "nosuid", "noexec", "nodev"))
		} else {
			out = append(out, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}})
		}
	}
	out = append(out,
		in.sysfs(mode),
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}})
	// A volume takes the place of what is mounted there else.
	over := func(at string) bool {
		return slices.ContainsFunc(s.Exec.Mounts, func(m service.Mount) bool { return path.Clean(m.Target) == at })
	}
	out = slices.DeleteFunc(out, func(m specs.Mount) bool { return over(m.Destination) })
	for _, file := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if !over(file) && !over("/etc") {
			out = append(out, bind(file, file, "ro"))
		}
	}
	return out
}

func bind(source, at string, options ...string) specs.Mount {
	return specs.Mount{Destination: at, Type: "bind", Source: source, Options: append([]string{"rbind"}, options...)}
}
