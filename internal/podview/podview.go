// Package podview shows the status of a pod's group as a PodStatus. It is a
// pure view: nothing of it is stored but what the API server keeps, and that is
// given back as the previous status.
package podview

import (
	"fmt"
	"slices"
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
	case v1.PodScheduled, v1.PodReady, v1.ContainersReady, v1.PodInitialized, v1.PodReadyToStartContainers, NotHonoured, v1.PodResizePending, v1.PodResizeInProgress, v1.AllContainersRestarting:
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
	// Expired: the pod has run for its activeDeadlineSeconds.
	Expired bool
	// Evicted is why the pod may run no more, empty if it may.
	Evicted string
	// Allocated is what the node gives the containers, Refused why that is not
	// what the pod asks for, and Spec the group that was made of it.
	Allocated podspec.Allocated
	Refused   Refused
	Spec      *service.Group
	Now       time.Time
}

// Status is the pod's status.
func Status(in Input) v1.PodStatus {
	if in.Previous == nil {
		in.Previous = &v1.PodStatus{}
	}
	prev := in.Previous
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
	s.ContainerStatuses = statuses(in, in.Pod.Spec.Containers, prev.ContainerStatuses)
	s.InitContainerStatuses = statuses(in, in.Pod.Spec.InitContainers, prev.InitContainerStatuses)
	for i := range s.InitContainerStatuses {
		if c := &s.InitContainerStatuses[i]; !podspec.Sidecar(&in.Pod.Spec.InitContainers[i]) {
			c.Ready = c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
		}
	}
	s.EphemeralContainerStatuses = ephemeral(in, prev.EphemeralContainerStatuses)
	shorten(&s)
	s.Phase = phase(in, prev.Phase, &s)
	switch {
	case prev.Phase == v1.PodSucceeded || prev.Phase == v1.PodFailed:
	case in.Evicted != "":
		end(&s, prev.Phase, "Evicted", in.Evicted)
	case in.Expired:
		end(&s, prev.Phase, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
	}
	conditions(in, &s)
	resized(in, prev, &s)
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

// mostMessages bounds all termination messages of a pod in bytes (the kubelet's
// MaxPodTerminationMessageLogLength).
const mostMessages = 12 << 10

// shorten gives each container the same part of that.
func shorten(s *v1.PodStatus) {
	most := mostMessages / max(1, len(s.InitContainerStatuses)+len(s.ContainerStatuses)+len(s.EphemeralContainerStatuses))
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			for _, t := range [...]*v1.ContainerStateTerminated{list[i].State.Terminated, list[i].LastTerminationState.Terminated} {
				if t != nil && len(t.Message) > most {
					t.Message = strings.ToValidUTF8(t.Message[:most], "")
				}
			}
		}
	}
}

// end: the pod has failed once nothing of it runs any more.
func end(s *v1.PodStatus, before v1.PodPhase, reason, message string) {
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses) {
		if c.State.Running != nil {
			s.Phase = before
			return
		}
	}
	s.Phase = v1.PodFailed
	s.Reason, s.Message = reason, message
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

// statuses are those of a list of containers, in its order; none for none.
func statuses(in Input, list []v1.Container, prev []v1.ContainerStatus) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	for i := range list {
		out = append(out, container(in, &list[i], find(prev, list[i].Name)))
	}
	return out
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
	incomplete := incomplete(in.Pod, s)
	switch {
	case s.Phase == v1.PodSucceeded:
		set(v1.PodInitialized, true, done, "")
	case len(incomplete) == 0 || anyStarted(s.ContainerStatuses) || initializedOnce(in):
		set(v1.PodInitialized, true, "", "")
	default:
		set(v1.PodInitialized, false, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %s", incomplete))
	}
	if podspec.RestartsAll(in.Pod) {
		if why := restarting(in); done == "" && why != "" {
			set(v1.AllContainersRestarting, true, startedReason, why)
		} else {
			set(v1.AllContainersRestarting, false, done, "")
		}
	}
	reason, message := done, ""
	if unready := unready(in.Pod, s); done == "" && len(unready) > 0 {
		reason, message = "ContainersNotReady", fmt.Sprintf("containers with unready status: %s", unready)
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
	lost := lost(in)
	if len(r.NotHonoured)+len(lost) == 0 {
		if quiet == "" {
			quiet = "all fields of the pod are honoured"
		} else {
			quiet = "all fields that the manifest sets are honoured; " + quiet
		}
		set(NotHonoured, false, "Honoured", quiet)
		return
	}
	reason, parts := "FieldsNotHonoured", []string{"these fields have no effect on this node yet: " + strings.Join(r.NotHonoured, ", ")}
	if len(r.NotHonoured) == 0 {
		reason, parts = "NotOnThisMachine", nil
	}
	if len(lost) > 0 {
		parts = append(parts, "this machine cannot give: "+strings.Join(lost, ", "))
	}
	if quiet != "" {
		parts = append(parts, quiet)
	}
	set(NotHonoured, true, reason, strings.Join(parts, "; "))
}

// lost are the limits and protections that the host could not give. What every
// pod goes without where there are no cgroups is told to those that ask for it.
func lost(in Input) []string {
	if in.Group == nil {
		return nil
	}
	asks := in.Pod.Spec.Resources != nil
	for _, c := range podspec.Containers(in.Pod) {
		asks = asks || len(c.Resources.Limits)+len(c.Resources.Requests) > 0
	}
	var out []string
	for i := range in.Group.Services {
		for _, what := range in.Group.Services[i].Lost {
			common := strings.HasPrefix(what, "cgroup:") || strings.HasPrefix(what, "CPUShares")
			if (asks || !common) && !slices.Contains(out, what) {
				out = append(out, what)
			}
		}
	}
	return out
}

// unready names the containers that are to be ready and are not; sidecars are
// among them.
func unready(pod *v1.Pod, s *v1.PodStatus) []string {
	var out []string
	for i := range s.InitContainerStatuses {
		if c := &s.InitContainerStatuses[i]; !c.Ready && podspec.Sidecar(&pod.Spec.InitContainers[i]) {
			out = append(out, c.Name)
		}
	}
	for i := range s.ContainerStatuses {
		if c := &s.ContainerStatuses[i]; !c.Ready {
			out = append(out, c.Name)
		}
	}
	return out
}

// incomplete names the init containers that hold the others back.
func incomplete(pod *v1.Pod, s *v1.PodStatus) []string {
	var out []string
	for i := range s.InitContainerStatuses {
		c := &s.InitContainerStatuses[i]
		if sidecar := podspec.Sidecar(&pod.Spec.InitContainers[i]); sidecar && !isTrue(c.Started) || !sidecar && !c.Ready {
			out = append(out, c.Name)
		}
	}
	return out
}

// anyStarted: where a container has started, the pod has been initialized.
func anyStarted(list []v1.ContainerStatus) bool {
	return slices.ContainsFunc(list, func(c v1.ContainerStatus) bool { return c.State.Running != nil || c.State.Terminated != nil })
}

func isTrue(b *bool) bool { return b != nil && *b }

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
