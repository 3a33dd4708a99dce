package podview

import (
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/podspec"
)

// phase follows the kubelet's rule (pkg/kubelet/kubelet_pods.go, getPhase): a
// terminal phase stays.
func phase(in Input, prev v1.PodPhase, s *v1.PodStatus) v1.PodPhase {
	if prev == v1.PodSucceeded || prev == v1.PodFailed {
		return prev
	}
	init := initPhase(in, s)
	if init.failed {
		return v1.PodFailed
	}
	running, waiting := init.running, init.waiting
	var stopped, final, succeeded int
	for i := range s.ContainerStatuses {
		c := &s.ContainerStatuses[i]
		ended := lastEnd(c)
		switch {
		case c.State.Running != nil:
			running++
			continue
		case ended == nil:
			waiting++
			continue
		}
		stopped++
		if in.Gone || !podspec.Restarts(in.Pod, &in.Pod.Spec.Containers[i], ended.ExitCode) && !again(in, c.Name) {
			final++
		}
		if ended.ExitCode == 0 {
			succeeded++
		}
	}
	switch {
	case init.pending && !in.Gone || waiting > 0:
		return v1.PodPending
	case running > 0:
		return v1.PodRunning
	case stopped == 0:
		return v1.PodPending
	case stopped > final:
		return v1.PodRunning
	case stopped == succeeded:
		return v1.PodSucceeded
	default:
		return v1.PodFailed
	}
}

// lastEnd is how a container that does not run has ended, nil if it never has.
func lastEnd(c *v1.ContainerStatus) *v1.ContainerStateTerminated {
	if c.State.Terminated != nil {
		return c.State.Terminated
	}
	return c.LastTerminationState.Terminated
}

// initialization is what the init containers make of the phase.
type initialization struct {
	failed, pending  bool
	running, waiting int
}

func initPhase(in Input, s *v1.PodStatus) initialization {
	var out initialization
	started := anyStarted(s.ContainerStatuses)
	for i := range s.InitContainerStatuses {
		c, spec := &s.InitContainerStatuses[i], &in.Pod.Spec.InitContainers[i]
		ended := lastEnd(c)
		switch {
		case podspec.Sidecar(spec) && c.State.Running != nil:
			out.running++
			out.pending = out.pending || !isTrue(c.Started) && !started
		case podspec.Sidecar(spec) && ended == nil:
			out.waiting++
			out.pending = out.pending || !started
		case podspec.Sidecar(spec):
			// Its end says nothing of the pod's.
		case c.State.Running != nil, ended == nil, ended.ExitCode == 0 && c.State.Waiting != nil:
			out.pending = true
		case ended.ExitCode != 0 && (in.Gone || !podspec.Restarts(in.Pod, spec, ended.ExitCode) && !again(in, c.Name)):
			out.failed = true
		case ended.ExitCode != 0:
			out.pending = true
		}
	}
	return out
}
