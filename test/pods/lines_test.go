package pods

import (
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// lines is the status of a pod, a fact a line, for scripts to match:
//
//	phase Failed DeadlineExceeded Pod was active …
//	qos Guaranteed
//	Ready False ContainersNotReady containers with …
//	web running
//	web ready, web started
//	web restarts 1
//	web waiting CrashLoopBackOff back-off 10s …
//	web resources cpu 100m-200m memory 0-64Mi
//	web terminated Error 3
//	web last terminated OOMKilled 137
//	web said what its termination message is
func lines(p *corev1.Pod) []string {
	s := &p.Status
	out := []string{words("phase", string(s.Phase), s.Reason, s.Message), words("qos", string(s.QOSClass)), fmt.Sprintf("generation %d", s.ObservedGeneration)}
	for _, c := range s.Conditions {
		out = append(out, words(string(c.Type), string(c.Status), c.Reason, c.Message))
	}
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			out = append(out, containerLines(&list[i])...)
		}
	}
	if p.DeletionTimestamp != nil {
		out = append(out, "deleting")
	}
	return out
}

func containerLines(c *corev1.ContainerStatus) []string {
	out := []string{fmt.Sprintf("%s restarts %d", c.Name, c.RestartCount), words(c.Name, "image", c.ImageID)}
	if r := c.Resources; r != nil {
		out = append(out, fmt.Sprintf("%s resources cpu %s-%s memory %s-%s", c.Name, r.Requests.Cpu(), r.Limits.Cpu(), r.Requests.Memory(), r.Limits.Memory()))
	}
	if c.Ready {
		out = append(out, c.Name+" ready")
	}
	if c.Started != nil && *c.Started {
		out = append(out, c.Name+" started")
	}
	state := func(prefix string, s *corev1.ContainerState) {
		switch {
		case s.Running != nil:
			out = append(out, prefix+" running")
		case s.Waiting != nil:
			out = append(out, words(prefix, "waiting", s.Waiting.Reason, s.Waiting.Message))
		case s.Terminated != nil:
			out = append(out, fmt.Sprintf("%s terminated %s %d", prefix, s.Terminated.Reason, s.Terminated.ExitCode))
			if s.Terminated.Message != "" {
				out = append(out, words(prefix, "said", s.Terminated.Message))
			}
		}
	}
	state(c.Name, &c.State)
	state(c.Name+" last", &c.LastTerminationState)
	return out
}

// words joins what there is, on one line.
func words(list ...string) string {
	text := strings.Join(strings.Fields(strings.Join(list, " ")), " ")
	return text
}

// match says which of the patterns match no line; a pattern is a whole line's.
func match(have, patterns []string) (missing []string, err error) {
	for _, p := range patterns {
		re, err := regexp.Compile("^(?:" + p + ")$")
		if err != nil {
			return nil, err
		}
		found := false
		for _, line := range have {
			found = found || re.MatchString(line)
		}
		if !found {
			missing = append(missing, p)
		}
	}
	return missing, nil
}
