package ocispec

import (
	"fmt"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"
)

// Filtered says whether a container's system calls are filtered by the
// runtime's default profile: the container's word goes before the pod's, and
// the privileged are free.
func Filtered(pod *v1.Pod, ctr *v1.Container) bool {
	var profile *v1.SeccompProfile
	if p := pod.Spec.SecurityContext; p != nil {
		profile = p.SeccompProfile
	}
	if s := ctr.SecurityContext; s != nil && s.SeccompProfile != nil {
		profile = s.SeccompProfile
	}
	return profile != nil && profile.Type == v1.SeccompProfileTypeRuntimeDefault && !privileged(ctr.SecurityContext)
}

// filter adds docker's default profile, which containerd's follows.
func (in *Input) filter(spec *specs.Spec) *Refusal {
	if !Filtered(in.Pod, in.Container) {
		return nil
	}
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return &Refusal{Message: fmt.Sprintf("the default seccomp profile: %v", err)}
	}
	spec.Linux.Seccomp = profile
	return nil
}
