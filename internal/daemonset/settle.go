package daemonset

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// out says whether the node is one that an update passes by while it is
// NotReady.
func (j *judge) out() bool { return j.p.skips && j.n.NotReady && j.n.Continue }

// settle says whether an update is done with the node, and what is wrong there.
func (j *judge) settle() {
	s := &j.v.Share
	if s.Desired == 0 {
		j.v.Settled = true
		return
	}
	switch {
	case j.out():
		j.v.Settled = true
	case s.Updated == 1 && s.Available == 1:
		j.v.Settled = true
		if o := &j.present[0]; !o.ReadySince.IsZero() {
			j.v.SettledAt = o.ReadySince.Add(j.p.minReady)
		}
	default:
		s.Open = 1
	}
	if s.Available == 0 {
		j.v.Trouble = j.trouble()
	}
}

// trouble says why there is no available pod.
func (j *judge) trouble() string {
	switch {
	case j.n.NotReady:
		return "node not ready"
	case len(j.present) == 0 && j.n.Unfit != "":
		reason, _, _ := strings.Cut(j.n.Unfit, ":")
		return "does not fit (" + reason + ")"
	case len(j.live) == 0:
		return ""
	}
	o := &j.live[0]
	if o.Trouble != "" || o.Ready || o.Phase != corev1.PodRunning || o.ReadySince.IsZero() {
		return o.Trouble
	}
	if at := o.ReadySince.Add(startTime); at.After(j.now) {
		j.v.wake(at)
		return ""
	}
	return "probe failed"
}

// startTime is how long a running pod may be without being ready before that
// counts as trouble.
const startTime = time.Minute

// trouble names what is wrong with a pod that is not ready. What a runtime
// says in turns while it tries again has one name, so that the name stays.
func trouble(pod *corev1.Pod) string {
	if pod.Status.Phase == corev1.PodFailed {
		return strings.TrimSpace("failed " + pod.Status.Reason)
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "not scheduled"
		}
	}
	for _, all := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range all {
			if t := containerTrouble(&all[i]); t != "" {
				return t
			}
		}
	}
	return ""
}

func containerTrouble(c *corev1.ContainerStatus) string {
	if c.Ready || c.State.Terminated != nil && c.State.Terminated.ExitCode == 0 {
		return ""
	}
	if w := c.State.Waiting; w != nil {
		switch w.Reason {
		case "", "ContainerCreating", "PodInitializing":
		case "ErrImagePull", "ImagePullBackOff":
			return "ImagePull"
		case "CrashLoopBackOff":
			return "crash loop"
		default:
			return w.Reason
		}
	}
	if c.RestartCount > 0 || c.State.Terminated != nil {
		return "crash loop"
	}
	return ""
}

// SlimStatus drops from a pod's status what Observe does not read, and writes to
// no list that it may share with another pod.
func SlimStatus(pod *corev1.Pod) {
	s := &pod.Status
	if Observe(pod).Ready {
		s.ContainerStatuses, s.InitContainerStatuses = nil, nil
	}
	for _, all := range []*[]corev1.ContainerStatus{&s.ContainerStatuses, &s.InitContainerStatuses} {
		*all = slices.Clone(*all)
		for i := range *all {
			c := &(*all)[i]
			slim := corev1.ContainerStatus{Name: c.Name, Ready: c.Ready, RestartCount: c.RestartCount}
			if w := c.State.Waiting; w != nil {
				slim.State.Waiting = &corev1.ContainerStateWaiting{Reason: w.Reason}
			}
			if t := c.State.Terminated; t != nil {
				slim.State.Terminated = &corev1.ContainerStateTerminated{ExitCode: t.ExitCode}
			}
			*c = slim
		}
	}
}

// NotReady says whether a node is not ready. One that has never said how it is
// counts as ready.
func NotReady(node *corev1.Node) bool {
	for i := range node.Status.Conditions {
		if c := &node.Status.Conditions[i]; c.Type == corev1.NodeReady {
			return c.Status != corev1.ConditionTrue
		}
	}
	return false
}
