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

// Restarts says whether a container that ended so is run again: by a rule of its
// own, else by its policy, else by the pod's.
func Restarts(pod *v1.Pod, ctr *v1.Container, exitCode int32) bool {
	if byRule(ctr, exitCode) {
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

// byRule: one of the container's restartPolicyRules wants it run again. There
// are none that want the opposite.
func byRule(ctr *v1.Container, exitCode int32) bool {
	return slices.ContainsFunc(ctr.RestartPolicyRules, func(r v1.ContainerRestartRule) bool {
		if r.ExitCodes == nil {
			return false
		}
		within := slices.Contains(r.ExitCodes.Values, exitCode)
		switch r.ExitCodes.Operator {
		case v1.ContainerRestartRuleOnExitCodesOpIn:
			return within
		case v1.ContainerRestartRuleOnExitCodesOpNotIn:
			return !within
		}
		return false
	})
}

// ruled adds the ends after which the container's rules want it run again. Who
// is ended by a signal has its number and 128 as exit code.
func ruled(ctr *v1.Container, force *service.ExitSet) {
	if len(ctr.RestartPolicyRules) == 0 {
		return
	}
	for code := range 256 {
		if byRule(ctr, int32(code)) {
			force.Codes = append(force.Codes, code)
		}
	}
	for signal := 1; signal <= 64; signal++ {
		if byRule(ctr, int32(128+signal)) && !slices.Contains(force.Signals, signal) {
			force.Signals = append(force.Signals, signal)
		}
	}
}
