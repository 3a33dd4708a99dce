package ocispec

import (
	"cmp"
	"fmt"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
)

// SeccompOf is the profile that filters a container's system calls, nil for
// none: the container's word goes before the pod's, and the privileged are free.
func SeccompOf(pod *v1.Pod, ctr *v1.Container) *v1.SeccompProfile {
	var profile *v1.SeccompProfile
	if p := pod.Spec.SecurityContext; p != nil {
		profile = p.SeccompProfile
	}
	if s := ctr.SecurityContext; s != nil && s.SeccompProfile != nil {
		profile = s.SeccompProfile
	}
	if profile == nil || profile.Type == v1.SeccompProfileTypeUnconfined || privileged(ctr.SecurityContext) {
		return nil
	}
	return profile
}

// LoadProfile reads a profile of the node as the engines of containers do, for a
// process with these capabilities.
func LoadProfile(text []byte, capabilities []string) (*specs.LinuxSeccomp, error) {
	spec := specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}}
	profile, err := seccomp.LoadProfile(string(text), &spec)
	if err != nil {
		return nil, err
	}
	return profile, check(profile)
}

// check refuses what would need somebody beside the container.
func check(profile *specs.LinuxSeccomp) error {
	if profile == nil {
		return nil
	}
	if profile.ListenerPath != "" || profile.DefaultAction == specs.ActNotify {
		return fmt.Errorf("it asks another program what to do (%s), and there is none", specs.ActNotify)
	}
	for _, call := range profile.Syscalls {
		if call.Action == specs.ActNotify {
			return fmt.Errorf("it asks another program what to do (%s), and there is none", specs.ActNotify)
		}
	}
	return nil
}

// filter adds the profile: docker's default one, which containerd's follows, or
// that of the node.
func (in *Input) filter(spec *specs.Spec) *Refusal {
	profile := SeccompOf(in.Pod, in.Container)
	if profile == nil {
		return nil
	}
	var err error
	name := "the default seccomp profile"
	if profile.Type == v1.SeccompProfileTypeLocalhost {
		name = fmt.Sprintf("cannot load seccomp profile %q", cmp.Or(in.Seccomp.Path, *profile.LocalhostProfile))
		if err = in.Seccomp.Err; err == nil {
			spec.Linux.Seccomp, err = LoadProfile(in.Seccomp.Text, spec.Process.Capabilities.Bounding)
		}
	} else {
		spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec)
	}
	if err != nil {
		return &Refusal{Message: fmt.Sprintf("%s: %v", name, err)}
	}
	return nil
}

// Profile is a seccomp profile of the node, or why it cannot be read.
type Profile struct {
	Path string
	Text []byte
	Err  error
}
