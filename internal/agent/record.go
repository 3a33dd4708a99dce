package agent

import (
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/podview"
	"legion.dev/legion/internal/service"
)

// settle is how long a new pod's "ContainerCreating" is kept back, and what a
// pod says while it ends: nearly always there is more to tell before, and a
// write to the API server is saved.
const settle = time.Second

// record is what the agent knows of one pod.
type record struct {
	uid types.UID
	// pod is the newest from the server, nil where the server has none of this
	// UID (any more).
	pod *v1.Pod
	// added and leaving are when the agent learnt of the pod and of its deletion.
	added, leaving time.Time
	// grace is the newest bound of the pod's end; it outlives the pod.
	grace time.Duration

	// group is what is to run; nil until compiled.
	group  *service.Group
	report podspec.Report

	// lookAgain is when to compile the pod anew, because a file of the node may
	// keep it back; zero for never.
	lookAgain time.Time

	// host is the group's status, nil while the host has not told of it.
	host *service.GroupStatus
	// boot is what the host knows of Group.Boot.
	boot bool
	// seen: told of in the list that a watch of the host begins with.
	seen bool
	// put: the host took the group.
	put bool
	// renew: the host has another definition than group.
	renew bool
	// compared: group was compared with what the host has.
	compared bool
	// started: a start was asked for (groups without Boot).
	started bool
	// expired: the pod's activeDeadlineSeconds are over; halted: the host was
	// asked to stop the group, because the pod has come to its end.
	expired, halted bool
	// allocated is what the node has given the containers; refused is why it is
	// not what the pod asks for, and resizeAt when to look again.
	allocated podspec.Allocated
	refused   podview.Refused
	resizeAt  time.Time
	// evicted is why the pod was evicted, empty if it was not; measuring that it
	// is being looked how much of the disk it takes, measureAt when that is next.
	evicted   string
	measuring bool
	measureAt time.Time
	// deleted: the host was asked to remove the group within deletedGrace.
	deleted      bool
	deletedGrace time.Duration
	// gone: the host removed the group, as asked.
	gone bool
	// lost: the host removed the group unasked.
	lost bool
	// refusal is why the host would not take the group.
	refusal string

	// status is the one last computed.
	status *v1.PodStatus
	// warned are the messages last recorded as events, by their kind.
	warned   map[string]string
	lastTold string
	// missingSecrets are the imagePullSecrets that do not exist.
	missingSecrets []string

	// volumes are those that the agent writes; stale says that they are to be
	// written (again), written that they have been, diskTrouble why not.
	volumes        []podspec.Volume
	stale, written bool
	diskTrouble    string
	tokens         tokens

	// images are those that the pod needs.
	images map[imageUse]*wanted
	// runs are the IDs of the images that the host has the pod's group with;
	// mounted those of its volumes, by their names.
	runs    []string
	mounted map[string]string

	toHost, toAPI, toDisk lane

	// changed and ended are there where somebody waits: for news, and until
	// nothing of the pod runs any more or will.
	changed, ended chan struct{}
}

// lane lets one request at a time go one way, and spaces out retries.
type lane struct {
	busy     bool
	failures int
	retryAt  time.Time
}

// free says whether a request may go now.
func (l *lane) free(now time.Time) bool { return !l.busy && !now.Before(l.retryAt) }

// failed sets the next try: 0.2 s, doubling to 15 s.
func (l *lane) failed(now time.Time) {
	wait := min(200*time.Millisecond<<min(l.failures, 10), 15*time.Second)
	l.failures++
	l.retryAt = now.Add(wait)
}

func (l *lane) succeeded() { l.failures, l.retryAt = 0, time.Time{} }

// action is one request that a record wants made.
type action int

const (
	none action = iota
	putGroup
	startGroup
	stopGroup
	deleteGroup
	patchStatus
	deletePod
	recordEvent
)

// hostAction is the next request to the host. listed: the server has told all
// pods of this node at least once.
func (r *record) hostAction(listed bool) action {
	onHost := r.host != nil || r.put
	switch {
	case r.gone:
		return none
	case r.pod == nil:
		if listed && onHost && !r.deleted {
			return deleteGroup
		}
		return none
	case r.pod.DeletionTimestamp != nil:
		if onHost && (!r.deleted || r.grace < r.deletedGrace) {
			return deleteGroup
		}
		return none
	case r.done():
		if onHost && r.alive() && !r.halted {
			return stopGroup // its logs stay until the pod is deleted
		}
		if onHost && r.boot && !r.deleted {
			return putGroup // without Boot: it must not run again after a reboot
		}
		return none
	case r.group == nil || len(r.blocked()) > 0:
		return none
	case !onHost || r.renew:
		return putGroup
	case !r.group.Boot && !r.started && r.neverRan():
		return startGroup
	}
	return none
}

// finished: the pod's phase is terminal.
func (r *record) finished() bool {
	phase := r.pod.Status.Phase
	if r.status != nil {
		phase = r.status.Phase
	}
	return phase == v1.PodSucceeded || phase == v1.PodFailed
}

// done: nothing of the pod is to run any more.
func (r *record) done() bool { return r.expired || r.evicted != "" || r.finished() }

func (r *record) alive() bool {
	if r.host == nil {
		return false
	}
	for i := range r.host.Services {
		if s := r.host.Services[i].State; s.Alive() || s == service.AutoRestart {
			return true
		}
	}
	return false
}

// neverRan: neither the host nor the server knows of a run.
func (r *record) neverRan() bool {
	if r.host == nil {
		return false
	}
	for i := range r.host.Services {
		if r.host.Services[i].Main != nil || r.host.Services[i].State != service.Dead {
			return false
		}
	}
	for i := range r.pod.Status.ContainerStatuses {
		if r.pod.Status.ContainerStatuses[i].ContainerID != "" {
			return false
		}
	}
	return true
}

// observe computes the status anew.
func (r *record) observe(nodeIP string, now time.Time) {
	if r.pod == nil {
		return
	}
	prev := r.pod.Status.DeepCopy()
	if r.status != nil {
		// What others write into the status is the server's to know.
		mine := r.status.DeepCopy()
		mine.Conditions = foreign(prev.Conditions, mine.Conditions)
		mine.QOSClass = prev.QOSClass
		prev = mine
	}
	report := r.report
	report.Blocked = r.blocked()
	if r.diskTrouble != "" && r.unwritten() {
		for _, c := range podspec.Containers(r.pod) {
			report.Blocked = append(report.Blocked, podspec.Blocked{Container: c.Name, Reason: podspec.Creating, Message: r.diskTrouble})
		}
	}
	in := podview.Input{
		Pod: r.pod, Previous: prev, Group: r.host, Gone: r.gone, Lost: r.lost,
		Report: report, Refusal: r.refusal, NodeIP: nodeIP, Now: now, Expired: r.expired, Evicted: r.evicted,
		Allocated: r.allocated, Refused: r.refused, Spec: r.group,
	}
	status := podview.Status(in)
	r.status = &status
	if at := r.deadline(); !r.expired && !at.IsZero() && !now.Before(at) && !r.finished() {
		r.expired, in.Expired = true, true
		status = podview.Status(in)
	}
}

// deadline is when the pod may run no more; zero for never.
func (r *record) deadline() time.Time {
	if r.pod == nil || r.pod.Spec.ActiveDeadlineSeconds == nil || r.status == nil || r.status.StartTime == nil || r.finished() {
		return time.Time{}
	}
	return r.status.StartTime.Add(time.Duration(*r.pod.Spec.ActiveDeadlineSeconds) * time.Second)
}

// blocked is why the pod cannot run; what runs already is not held back.
func (r *record) blocked() []podspec.Blocked {
	if r.host != nil || r.put {
		return nil
	}
	return r.report.Blocked
}

// unwritten: the pod cannot run before its volumes are written.
func (r *record) unwritten() bool { return len(r.volumes) > 0 && !r.written && r.host == nil }

// foreign is the conditions of mine that are the agent's, and those of theirs
// that are not.
func foreign(theirs, mine []v1.PodCondition) []v1.PodCondition {
	out := make([]v1.PodCondition, 0, len(mine))
	for _, c := range mine {
		if podview.Owns(c.Type) {
			out = append(out, c)
		}
	}
	for _, c := range theirs {
		if !podview.Owns(c.Type) {
			out = append(out, c)
		}
	}
	return out
}

// apiAction is the next request to the server, and if it is none the time at
// which to ask again (zero: at the next news).
func (r *record) apiAction(hostSynced bool, now time.Time) (action, time.Time) {
	if r.pod == nil || r.status == nil {
		return none, time.Time{}
	}
	changed := !sameStatus(&r.pod.Status, r.status)
	if r.pod.DeletionTimestamp != nil {
		over := r.gone || (hostSynced && r.host == nil && !r.put && !r.toHost.busy)
		switch {
		case over && changed && r.gone:
			return patchStatus, time.Time{}
		case over:
			return deletePod, time.Time{}
		case changed && now.Before(r.leaving.Add(settle)):
			// Most end at once; then one write tells all.
			return none, r.leaving.Add(settle)
		}
	}
	if changed {
		if until := r.added.Add(settle); r.creating() && now.Before(until) {
			return none, until
		}
		return patchStatus, time.Time{}
	}
	if r.untold() != nil {
		return recordEvent, time.Time{}
	}
	return none, time.Time{}
}

// creating: there is nothing to tell yet.
func (r *record) creating() bool {
	for _, list := range [][]v1.ContainerStatus{r.status.InitContainerStatuses, r.status.ContainerStatuses} {
		for i := range list {
			w := list[i].State.Waiting
			if w == nil || w.Reason != podspec.Creating && w.Reason != podspec.Initializing {
				return false
			}
		}
	}
	return true
}

// sameStatus compares what the agent writes.
func sameStatus(a, b *v1.PodStatus) bool {
	if a.Phase != b.Phase || a.Reason != b.Reason || a.Message != b.Message || a.ObservedGeneration != b.ObservedGeneration || a.HostIP != b.HostIP || a.PodIP != b.PodIP ||
		!a.StartTime.Equal(b.StartTime) ||
		!apiequality.Semantic.DeepEqual(a.ContainerStatuses, b.ContainerStatuses) ||
		!apiequality.Semantic.DeepEqual(a.InitContainerStatuses, b.InitContainerStatuses) ||
		!apiequality.Semantic.DeepEqual(a.EphemeralContainerStatuses, b.EphemeralContainerStatuses) {
		return false
	}
	if len(podview.Over(a, b)) > 0 {
		return false
	}
	for i := range b.Conditions {
		if !podview.Owns(b.Conditions[i].Type) {
			continue
		}
		if !apiequality.Semantic.DeepEqual(podview.Condition(a, b.Conditions[i].Type), &b.Conditions[i]) {
			return false
		}
	}
	return true
}
