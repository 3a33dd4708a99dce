package podspec

import (
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
)

// TestRestarts: a container's rules go before its policy, and that before the
// pod's; the host and the pod's phase are of one mind.
func TestRestarts(t *testing.T) {
	rule := func(operator v1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) v1.ContainerRestartRule {
		return v1.ContainerRestartRule{Action: v1.ContainerRestartRuleActionRestart, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: operator, Values: codes}}
	}
	never, always := v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyAlways
	for name, test := range map[string]struct {
		pod   v1.RestartPolicy
		own   *v1.ContainerRestartPolicy
		rules []v1.ContainerRestartRule
		again []int32 // of 0, 1, 42, 137
	}{
		"the pod's":     {v1.RestartPolicyOnFailure, nil, nil, []int32{1, 42, 137}},
		"its own":       {v1.RestartPolicyNever, &always, nil, []int32{0, 1, 42, 137}},
		"one code":      {v1.RestartPolicyAlways, &never, []v1.ContainerRestartRule{rule(v1.ContainerRestartRuleOnExitCodesOpIn, 42)}, []int32{42}},
		"killed":        {v1.RestartPolicyNever, &never, []v1.ContainerRestartRule{rule(v1.ContainerRestartRuleOnExitCodesOpIn, 137)}, []int32{137}},
		"all but these": {v1.RestartPolicyNever, &never, []v1.ContainerRestartRule{rule(v1.ContainerRestartRuleOnExitCodesOpNotIn, 0, 42)}, []int32{1, 137}},
		"any of them":   {v1.RestartPolicyNever, &never, []v1.ContainerRestartRule{rule(v1.ContainerRestartRuleOnExitCodesOpIn, 0), rule(v1.ContainerRestartRuleOnExitCodesOpIn, 1)}, []int32{0, 1}},
	} {
		class := HostRuntime
		pod := &v1.Pod{Spec: v1.PodSpec{RuntimeClassName: &class, RestartPolicy: test.pod, Containers: []v1.Container{{
			Name: "c", Command: []string{"x"}, RestartPolicy: test.own, RestartPolicyRules: test.rules,
		}}}}
		g, report := Compile(pod, node, nil)
		if len(report.NotHonoured) > 0 {
			t.Errorf("%s: %q", name, report.NotHonoured)
		}
		r := g.Services[0].Restart
		for _, code := range []int32{0, 1, 42, 137} {
			want := slices.Contains(test.again, code)
			exit := service.Exit{Code: int(code)}
			if code > 128 {
				exit = service.Exit{Signal: int(code - 128)}
			}
			host := r.Force.Has(exit) || r.Mode == service.RestartAlways || r.Mode == service.RestartOnFailure && code != 0
			if Restarts(pod, &pod.Spec.Containers[0], code) != want || host != want {
				t.Errorf("%s: after %d it is run again: by the host %v, by the phase %v, want %v", name, code, host, !want, want)
			}
		}
		if len(test.rules) > 0 && r.Backoff == nil {
			t.Errorf("%s: it has no back-off", name)
		}
	}
}

// TestRestartsAll: the first rule that fits is what counts, and all containers
// have a stage where one of them may have all start again.
func TestRestartsAll(t *testing.T) {
	rule := func(action v1.ContainerRestartRuleAction, codes ...int32) v1.ContainerRestartRule {
		return v1.ContainerRestartRule{Action: action, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: codes}}
	}
	class, never := HostRuntime, v1.ContainerRestartPolicyNever
	pod := &v1.Pod{Spec: v1.PodSpec{RuntimeClassName: &class, Containers: []v1.Container{
		{Name: "a", Command: []string{"x"}, RestartPolicy: &never, RestartPolicyRules: []v1.ContainerRestartRule{
			rule(v1.ContainerRestartRuleActionRestart, 1, 137), rule(v1.ContainerRestartRuleActionRestartAllContainers, 0, 1, 143),
		}},
		{Name: "b", Command: []string{"x"}},
	}}}
	g, report := Compile(pod, node, nil)
	r := g.Services[0].Restart
	for exit, want := range map[service.Exit]string{
		{}: "all", {Code: 1}: "alone", {Code: 2}: "", {Code: 143}: "all", {Signal: 15}: "all", {Signal: 9}: "alone", {Signal: 2}: "",
	} {
		got := map[[2]bool]string{{true, false}: "alone", {false, true}: "all"}[[2]bool{r.Force.Has(exit), r.All.Has(exit)}]
		if got != want {
			t.Errorf("after %+v it starts again %q, want %q", exit, got, want)
		}
	}
	if len(report.NotHonoured) > 0 || g.Services[0].Stage != 1 || g.Services[1].Stage != 1 || !Restarts(pod, &pod.Spec.Containers[0], 143) {
		t.Errorf("%+v, %q", g.Services, report.NotHonoured)
	}
}
