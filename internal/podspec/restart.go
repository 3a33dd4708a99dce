package podspec

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
)

// policyOf is a container's restartPolicy, or else the pod's.
func policyOf(pod *v1.Pod, ctr *v1.Container) v1.RestartPolicy {
	if ctr.RestartPolicy != nil {
		return v1.RestartPolicy(*ctr.RestartPolicy)
	}
	return pod.Spec.RestartPolicy
}

// Restarts says whether a container that ended so is run again, alone or with
// the others: by a rule of its own, else by its policy, else by the pod's.
func Restarts(pod *v1.Pod, ctr *v1.Container, exitCode int32) bool {
	if byRule(ctr, exitCode) != "" {
		return true
	}
	switch policyOf(pod, ctr) {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

// RestartsAll says whether an end of one of the pod's containers may have all of
// them started again.
func RestartsAll(pod *v1.Pod) bool {
	return slices.ContainsFunc(Containers(pod), func(c *v1.Container) bool {
		return slices.ContainsFunc(c.RestartPolicyRules, func(r v1.ContainerRestartRule) bool {
			return r.Action == v1.ContainerRestartRuleActionRestartAllContainers
		})
	})
}

// byRule is what the first of the container's restartPolicyRules that fits the
// end wants, empty for none.
func byRule(ctr *v1.Container, exitCode int32) v1.ContainerRestartRuleAction {
	for _, r := range ctr.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		within := slices.Contains(r.ExitCodes.Values, exitCode)
		switch r.ExitCodes.Operator {
		case v1.ContainerRestartRuleOnExitCodesOpIn:
		case v1.ContainerRestartRuleOnExitCodesOpNotIn:
			within = !within
		default:
			continue
		}
		if within {
			return r.Action
		}
	}
	return ""
}

// ruled adds the ends after which the container's rules want it, or all
// containers, run again. Who is ended by a signal has its number and 128 as exit
// code.
func ruled(ctr *v1.Container, r *service.Restart) {
	if len(ctr.RestartPolicyRules) == 0 {
		return
	}
	set := func(code int) *service.ExitSet {
		switch byRule(ctr, int32(code)) {
		case v1.ContainerRestartRuleActionRestart:
			return &r.Force
		case v1.ContainerRestartRuleActionRestartAllContainers:
			return &r.All
		}
		return &service.ExitSet{}
	}
	for code := range 256 {
		s := set(code)
		s.Codes = append(s.Codes, code)
	}
	for signal := 1; signal <= 64; signal++ {
		if s := set(128 + signal); !slices.Contains(s.Signals, signal) {
			s.Signals = append(s.Signals, signal)
		}
	}
}
