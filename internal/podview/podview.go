// Package podview shows the status of a pod's group as a PodStatus. It is a
// pure view: nothing of it is stored but what the API server keeps, and that is
// given back as the previous status.
package podview

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// NotHonoured is the condition that lists what the pod asks for in vain.
const NotHonoured v1.PodConditionType = "legion.dev/NotHonoured"

// Owns says whether the agent is the writer of a condition.
func Owns(kind v1.PodConditionType) bool {
	switch kind {
	case v1.PodScheduled, v1.PodReady, v1.ContainersReady, v1.PodInitialized, v1.PodReadyToStartContainers, NotHonoured:
		return true
	default:
		return false
	}
}

// Input is what is known of a pod on its node.
type Input struct {
	Pod *v1.Pod
	// Previous is the status last shown.
	Previous *v1.PodStatus
	// Group is nil until the host has told of it.
	Group *service.GroupStatus
	// Gone: the host had the group and has removed it with all its processes.
	Gone bool
	// Lost: the host had the group and removed it unasked.
	Lost bool
	// Report is what the pod asks for and does not get.
	Report podspec.Report
	// Refusal is why the host would not take the group, empty if it did.
	Refusal string
	NodeIP  string
	Now     time.Time
}

// Status is the pod's status.
func Status(in Input) v1.PodStatus {
	prev := in.Previous
	if prev == nil {
		prev = &v1.PodStatus{}
	}
	s := *prev.DeepCopy()
	s.ObservedGeneration = in.Pod.Generation
	if s.StartTime == nil {
		now := metav1.NewTime(in.Now.Truncate(time.Second))
		s.StartTime = &now
	}
	if in.NodeIP != "" {
		s.HostIP, s.PodIP = in.NodeIP, in.NodeIP
		s.HostIPs = []v1.HostIP{{IP: in.NodeIP}}
		s.PodIPs = []v1.PodIP{{IP: in.NodeIP}}
	}
	s.ContainerStatuses = make([]v1.ContainerStatus, 0, len(in.Pod.Spec.Containers))
	for i := range in.Pod.Spec.Containers {
		c := &in.Pod.Spec.Containers[i]
		s.ContainerStatuses = append(s.ContainerStatuses, container(in, c, find(prev.ContainerStatuses, c.Name)))
	}
	s.InitContainerStatuses = initContainers(in.Pod)
	s.Phase = phase(in, prev.Phase, s.ContainerStatuses)
	conditions(in, &s)
	if newRun(prev, &s) {
		// A restart between two looks was a time of not being ready.
		for i := range s.Conditions {
			if kind := s.Conditions[i].Type; kind == v1.PodReady || kind == v1.ContainersReady {
				s.Conditions[i].LastTransitionTime = second(in.Now)
			}
		}
	}
	return s
}

// newRun: a container runs that is not the one shown before.
func newRun(prev, next *v1.PodStatus) bool {
	for i := range next.ContainerStatuses {
		c := &next.ContainerStatuses[i]
		old := find(prev.ContainerStatuses, c.Name)
		if old != nil && old.ContainerID != "" && old.ContainerID != c.ContainerID && c.State.Running != nil {
			return true
		}
	}
	return false
}

func find(list []v1.ContainerStatus, name string) *v1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// initContainers wait for ever: see podspec.
func initContainers(pod *v1.Pod) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		started := false
		out = append(out, v1.ContainerStatus{
			Name: c.Name, Image: c.Image, Started: &started,
			State: waiting(podspec.ConfigError, "init containers are not supported yet by runtime "+podspec.HostRuntime),
		})
	}
	return out
}

// phase follows the kubelet's rule (pkg/kubelet/kubelet_pods.go, getPhase): a
// terminal phase stays.
func phase(in Input, prev v1.PodPhase, list []v1.ContainerStatus) v1.PodPhase {
	if prev == v1.PodSucceeded || prev == v1.PodFailed {
		return prev
	}
	var waiting, running, stopped, final, succeeded int
	for i := range list {
		c := &list[i]
		ended := c.State.Terminated
		switch {
		case c.State.Running != nil:
			running++
			continue
		case ended == nil && c.LastTerminationState.Terminated != nil:
			ended = c.LastTerminationState.Terminated
		case ended == nil:
			waiting++
			continue
		}
		stopped++
		if in.Gone || !restarts(in.Pod, c.Name, ended.ExitCode) {
			final++
		}
		if ended.ExitCode == 0 {
			succeeded++
		}
	}
	switch {
	case waiting > 0:
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

// restarts says whether a container that ended so is run again.
func restarts(pod *v1.Pod, name string, exitCode int32) bool {
	policy := pod.Spec.RestartPolicy
	for i := range pod.Spec.Containers {
		if c := &pod.Spec.Containers[i]; c.Name == name && c.RestartPolicy != nil {
			policy = v1.RestartPolicy(*c.RestartPolicy)
		}
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

// conditions sets the kubelet's conditions and Legion's own; those of others
// stay as they are.
func conditions(in Input, s *v1.PodStatus) {
	set := func(kind v1.PodConditionType, ok bool, reason, message string) {
		c := v1.PodCondition{Type: kind, Status: v1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: in.Pod.Generation}
		if ok {
			c.Status = v1.ConditionTrue
		}
		setCondition(s, c, in.Now)
	}
	done := ""
	switch s.Phase {
	case v1.PodSucceeded:
		done = "PodCompleted"
	case v1.PodFailed:
		done = "PodFailed"
	}
	runs := len(in.Report.Blocked) == 0 && in.Refusal == "" && in.Group != nil && !in.Gone && done == ""
	set(v1.PodReadyToStartContainers, runs, "", "")
	initialized := len(in.Pod.Spec.InitContainers) == 0
	switch {
	case initialized && s.Phase == v1.PodSucceeded:
		set(v1.PodInitialized, true, done, "")
	case initialized:
		set(v1.PodInitialized, true, "", "")
	default:
		set(v1.PodInitialized, false, "ContainersNotInitialized", "containers with incomplete status: ["+names(s.InitContainerStatuses)+"]")
	}
	reason, message := done, ""
	if unready := names(s.ContainerStatuses); done == "" && unready != "" {
		reason, message = "ContainersNotReady", "containers with unready status: ["+unready+"]"
	}
	set(v1.ContainersReady, reason == "", reason, message)
	if reason == "" {
		if missing := gates(in.Pod, s); missing != "" {
			reason, message = "ReadinessGatesNotReady", missing
		}
	}
	set(v1.PodReady, reason == "", reason, message)
	if c := Condition(s, v1.PodScheduled); c == nil || c.Status != v1.ConditionTrue {
		set(v1.PodScheduled, true, "", "")
	}
	notHonoured(in, set)
}

func notHonoured(in Input, set func(v1.PodConditionType, bool, string, string)) {
	r := in.Report
	quiet := ""
	if len(r.Quiet) > 0 {
		quiet = "not provided: " + strings.Join(r.Quiet, ", ")
	}
	if len(r.NotHonoured) == 0 {
		if quiet == "" {
			quiet = "all fields of the pod are honoured"
		} else {
			quiet = "all fields that the manifest sets are honoured; " + quiet
		}
		set(NotHonoured, false, "Honoured", quiet)
		return
	}
	message := "these fields have no effect on this node yet: " + strings.Join(r.NotHonoured, ", ")
	if quiet != "" {
		message += "; " + quiet
	}
	set(NotHonoured, true, "FieldsNotHonoured", message)
}

func names(list []v1.ContainerStatus) string {
	var out []string
	for i := range list {
		if !list[i].Ready {
			out = append(out, list[i].Name)
		}
	}
	return strings.Join(out, " ")
}

// gates says which readiness gates hold the pod back.
func gates(pod *v1.Pod, s *v1.PodStatus) string {
	var out []string
	for _, g := range pod.Spec.ReadinessGates {
		switch c := Condition(s, g.ConditionType); {
		case c == nil:
			out = append(out, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType))
		case c.Status != v1.ConditionTrue:
			out = append(out, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", g.ConditionType, c.Status))
		}
	}
	return strings.Join(out, ", ")
}

// Condition finds a condition, nil if there is none.
func Condition(s *v1.PodStatus, kind v1.PodConditionType) *v1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

func setCondition(s *v1.PodStatus, c v1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	old := Condition(s, c.Type)
	if old == nil {
		s.Conditions = append(s.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	c.LastProbeTime = old.LastProbeTime
	*old = c
}
