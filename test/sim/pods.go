package sim

import (
	"context"
	"encoding/json"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// state is a pod as its node knows it.
type state struct {
	pod  *corev1.Pod
	node *node
	fate fate
	// started and stopping: the time that it takes has begun. gone: it is over.
	started, stopping, gone bool
	// stuck: it waits for an image that its node cannot get.
	stuck bool
	// busy: a request about it is under way.
	busy bool
}

func key(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

func ready(pod *corev1.Pod) bool {
	return len(pod.Status.Conditions) > 0 && pod.Status.Conditions[0].Status == corev1.ConditionTrue
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

func (s *Stats) count(pod *corev1.Pod, sign int) {
	switch {
	case pod.DeletionTimestamp != nil:
		s.Leaving += sign
	default:
		s.Bound += sign
		if ready(pod) {
			s.Ready += sign
		}
	}
}

// look takes note of a pod as the API shows it and does what its node does.
func (f *Fleet) look(pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.states[key(pod)]
	if s != nil && s.pod.UID != pod.UID {
		f.stats.count(s.pod, -1)
		s = nil
	}
	before := f.stats
	if s == nil {
		s = &state{}
		f.states[key(pod)] = s
	} else {
		f.stats.count(s.pod, -1)
	}
	s.pod = pod
	f.stats.count(pod, 1)
	if f.stats != before {
		f.tell()
	}
	if s.node == nil {
		if s.node = f.nodes[pod.Spec.NodeName]; s.node == nil {
			return
		}
		s.fate = fateOf(&f.cfg, s.node.name, s.node.pods)
		s.node.pods++
	}
	f.act(s)
}

func (f *Fleet) forget(pod *corev1.Pod) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.states[key(pod)]; s != nil && s.pod.UID == pod.UID {
		delete(f.states, key(pod))
		s.gone = true
		f.stats.count(s.pod, -1)
		f.tell()
	}
}

// act starts what is due for a pod; the caller holds the lock.
func (f *Fleet) act(s *state) {
	if s.busy || s.gone || s.node.silent || f.life.Err() != nil {
		return
	}
	switch {
	case s.pod.DeletionTimestamp != nil:
		wait := s.fate.stop
		if grace := s.pod.DeletionGracePeriodSeconds; grace != nil {
			wait = min(wait, time.Duration(*grace)*time.Second)
		}
		if s.stopping {
			wait = 0
		}
		s.stopping = true
		f.after(wait, s, f.remove)
	case !ended(s.pod) && !ready(s.pod) && !s.stuck:
		wait := s.fate.start
		if s.started {
			wait = 0
		}
		s.started = true
		f.after(wait, s, f.raise)
	}
}

// after runs one step of a pod's life beside the loop, and looks again at what
// is due then. The caller holds the lock.
func (f *Fleet) after(d time.Duration, s *state, step func(context.Context, *state) error) {
	s.busy = true
	run := func() {
		select {
		case f.calls <- struct{}{}:
		case <-f.life.Done():
			return
		}
		f.mu.Lock()
		idle := s.node.silent
		f.mu.Unlock()
		var err error
		if !idle {
			err = step(f.life, s)
		}
		<-f.calls
		f.mu.Lock()
		s.busy = false
		switch {
		case err == nil:
			f.act(s)
		case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
			// Gone, or another pod of that name; the watch tells.
		case f.life.Err() == nil:
			f.cfg.Log.Warn("a simulated node could not write about its pod", "node", s.node.name, "pod", key(s.pod), "error", err)
			s.busy = true
			time.AfterFunc(time.Second, func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				s.busy = false
				f.act(s)
			})
		}
		f.mu.Unlock()
	}
	if d <= 0 {
		go run()
		return
	}
	time.AfterFunc(d, run)
}

// missing returns an image that the pod waits for in vain, if there is one.
func (f *Fleet) missing(pod *corev1.Pod) string {
	for _, c := range pod.Spec.Containers {
		if f.cfg.Pullable != nil && !f.cfg.Pullable(c.Image) {
			return c.Image
		}
	}
	return ""
}

// raise writes that a pod runs and is ready, or that it failed, or that it
// waits for an image.
func (f *Fleet) raise(ctx context.Context, s *state) error {
	f.mu.Lock()
	pod := s.pod
	f.mu.Unlock()
	if pod.DeletionTimestamp != nil || ready(pod) || ended(pod) {
		return nil
	}
	image := f.missing(pod)
	patch := runningPatch(pod, s.node)
	switch {
	case image != "":
		patch = waitingPatch(pod, image)
	case s.fate.fails:
		patch = endedPatch(pod, 1)
	}
	err := f.client(s.node).wire.patchStatus(ctx, pod.Namespace, pod.Name, patch)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// The watch will say so, too; until then nothing is to be written again.
	switch {
	case image != "":
		s.stuck = true
	case s.pod == pod:
		seen := *pod
		if s.fate.fails {
			seen.Status.Phase = corev1.PodFailed
		} else {
			seen.Status.Phase = corev1.PodRunning
			seen.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			f.stats.Ready++
			f.tell()
		}
		s.pod = &seen
	}
	return nil
}

// remove takes a pod that was stopped out of the API.
func (f *Fleet) remove(ctx context.Context, s *state) error {
	f.mu.Lock()
	pod := s.pod
	f.mu.Unlock()
	api := f.client(s.node).wire
	if f.cfg.FinalStatus && !ended(pod) {
		if err := api.patchStatus(ctx, pod.Namespace, pod.Name, endedPatch(pod, 0)); err != nil {
			return err
		}
	}
	zero := int64(0)
	err := api.deletePod(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s.gone = true
	return nil
}

func conditions(now metav1.Time, up bool) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, t := range []corev1.PodConditionType{
		corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled,
	} {
		status := corev1.ConditionTrue
		if !up && (t == corev1.PodReady || t == corev1.ContainersReady) {
			status = corev1.ConditionFalse
		}
		out = append(out, corev1.PodCondition{Type: t, Status: status, LastTransitionTime: now})
	}
	return out
}

// runningPatch is the strategic merge patch of a status as a kubelet writes it.
func runningPatch(pod *corev1.Pod, n *node) []byte {
	now, yes := metav1.Now(), true
	status := corev1.PodStatus{
		Phase: corev1.PodRunning, Conditions: conditions(now, true), StartTime: &now,
		HostIP: n.address(), HostIPs: []corev1.HostIP{{IP: n.address()}},
		PodIP: n.address(), PodIPs: []corev1.PodIP{{IP: n.address()}},
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: "sim://" + c.Image, ContainerID: "sim://" + string(pod.UID),
			Ready: true, Started: &yes, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	return patchOf(pod, status)
}

// waitingPatch is the status of a pod one of whose images no registry has.
func waitingPatch(pod *corev1.Pod, missing string) []byte {
	now := metav1.Now()
	status := corev1.PodStatus{Phase: corev1.PodPending, Conditions: conditions(now, false), StartTime: &now}
	for _, c := range pod.Spec.Containers {
		waiting := &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
		if c.Image == missing {
			waiting = &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "Back-off pulling image \"" + c.Image + "\""}
		}
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, State: corev1.ContainerState{Waiting: waiting},
		})
	}
	return patchOf(pod, status)
}

func endedPatch(pod *corev1.Pod, code int32) []byte {
	now := metav1.Now()
	status := corev1.PodStatus{Phase: corev1.PodSucceeded, Conditions: conditions(now, false)}
	reason := "Completed"
	if code != 0 {
		status.Phase, reason = corev1.PodFailed, "Error"
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, ImageID: "sim://" + c.Image,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, FinishedAt: now}},
		})
	}
	return patchOf(pod, status)
}

func patchOf(pod *corev1.Pod, status corev1.PodStatus) []byte {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status})
	if err != nil {
		panic(err) // plain structs
	}
	return patch
}
