package podview

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// atOnce is the longest restart delay that is no back-off.
const atOnce = time.Second

// lostExit is the exit code of a process whose own was lost; the kubelet's.
const lostExit = 137

// container is one container's status.
func container(in Input, c *v1.Container, prev *v1.ContainerStatus) v1.ContainerStatus {
	out := v1.ContainerStatus{Name: c.Name, Image: c.Image}
	if prev != nil {
		out = *prev.DeepCopy()
		out.Image = c.Image
	}
	if id := in.Report.Images[c.Name]; id != "" {
		out.ImageID = id
	}
	no := false
	out.Ready, out.Started = false, &no
	st := serviceOf(in.Group, c.Name)
	switch {
	case in.Gone || (in.Lost && out.State.Running != nil):
		ended(&out, st, in)
	case blocked(in.Report, c.Name) != nil:
		b := blocked(in.Report, c.Name)
		out.State = waiting(b.Reason, b.Message)
		if b.Reason == podspec.Creating && b.Message == "" {
			out.State = notYet(in)
		}
	case in.Refusal != "":
		out.State = waiting(podspec.CreateError, in.Refusal)
	case len(in.Report.Blocked) > 0:
		out.State = waiting("PodNotStarted", fmt.Sprintf("waits for container %q, which cannot run: %s", in.Report.Blocked[0].Container, in.Report.Blocked[0].Message))
	case st == nil && prev == nil:
		out.State = notYet(in)
	case st == nil:
		// The host has not told yet: what was last shown stands.
		out.Ready, out.Started = prev.Ready, prev.Started
	default:
		observe(&out, in, st)
	}
	return out
}

func serviceOf(g *service.GroupStatus, name string) *service.Status {
	if g == nil {
		return nil
	}
	for i := range g.Services {
		if g.Services[i].Name == name {
			return &g.Services[i]
		}
	}
	return nil
}

func blocked(r podspec.Report, name string) *podspec.Blocked {
	for i := range r.Blocked {
		if r.Blocked[i].Container == name {
			return &r.Blocked[i]
		}
	}
	return nil
}

// observe shows what the host says of a container's service.
func observe(out *v1.ContainerStatus, in Input, st *service.Status) {
	old := out.ContainerID
	restartCount := out.RestartCount
	if st.Main != nil {
		out.ContainerID = ContainerID(in.Pod, out.Name, st.Main.Number)
		if old != "" && old != out.ContainerID {
			restartCount++
		}
	}
	// The host counts from its last start, a status for the pod's whole life.
	restarts := st.Restarts
	if ended := st.Main != nil && st.Main.Exit != nil; ended && (st.State == service.StartPre || st.State == service.Start) {
		restarts-- // the run that is counted last has no process yet
	}
	out.RestartCount = max(restartCount, int32(min(restarts, 1<<30)))

	running := st.Main != nil && st.Main.Exit == nil
	switch {
	case st.Held:
		keepLast(out, in, st)
		out.State = notYet(in)
	case running:
		if old != "" && old != out.ContainerID && out.State.Terminated != nil {
			out.LastTerminationState = v1.ContainerState{Terminated: out.State.Terminated}
		}
		out.State = v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: second(st.Main.Started)}}
		if st.Previous != nil && st.Previous.Exit != nil {
			out.LastTerminationState = v1.ContainerState{Terminated: terminated(in.Pod, out.Name, st.Previous, nil)}
		}
		alive := st.State.Alive()
		started := alive && st.Started
		out.Ready, out.Started = alive && st.Ready, &started
	case st.State == service.AutoRestart && delay(st) >= atOnce:
		keepLast(out, in, st)
		out.State = waiting("CrashLoopBackOff", backOff(in.Pod, out.Name, st))
	case st.Main != nil:
		out.State = v1.ContainerState{Terminated: terminated(in.Pod, out.Name, st.Main, st)}
		if st.Previous != nil && st.Previous.Exit != nil {
			out.LastTerminationState = v1.ContainerState{Terminated: terminated(in.Pod, out.Name, st.Previous, nil)}
		}
	case failedToStart(st):
		out.State = waiting(podspec.RunError, cmp.Or(cause(st), "the host could not start the process"))
	case out.State.Running != nil:
		// The host has lost the run: it was not there to see its end.
		ended(out, nil, in)
	case out.State.Terminated == nil:
		out.State = notYet(in)
	}
}

// keepLast moves the run that ended to the last state.
func keepLast(out *v1.ContainerStatus, in Input, st *service.Status) {
	if st.Main != nil && st.Main.Exit != nil {
		out.LastTerminationState = v1.ContainerState{Terminated: terminated(in.Pod, out.Name, st.Main, st)}
	}
}

func failedToStart(st *service.Status) bool {
	return st.State == service.Failed || st.State == service.AutoRestart || (st.Result != "" && st.Result != service.Success)
}

// delay is how long the service waits for its restart in all.
func delay(st *service.Status) time.Duration {
	if st.NextRestart == nil {
		return 0
	}
	since := st.Since
	if st.Main != nil && st.Main.Exit != nil {
		since = st.Main.Exit.At
	}
	return st.NextRestart.Sub(since)
}

// backOff is the kubelet's message, with the host's reason where no process
// came to be.
func backOff(pod *v1.Pod, name string, st *service.Status) string {
	text := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
		delay(st).Round(time.Second), name, pod.Name, pod.Namespace, pod.UID)
	if st.Main == nil || st.Result == service.Resources || st.Result == service.Unhealthy {
		if why := cause(st); why != "" {
			text += ": " + why
		}
	}
	return text
}

// cause is the host's reason without the back-off that it may begin with.
func cause(st *service.Status) string {
	if strings.HasPrefix(st.Reason, "back-off ") {
		_, rest, _ := strings.Cut(st.Reason, ": ")
		return rest
	}
	return st.Reason
}

// ContainerID names one run of a container.
func ContainerID(pod *v1.Pod, name string, run uint64) string {
	return fmt.Sprintf("legion://%s/%s/%d", podspec.GroupName(pod.UID), name, run)
}

// terminated shows the end of a run; st tells more where it is the newest.
func terminated(pod *v1.Pod, name string, run *service.Run, st *service.Status) *v1.ContainerStateTerminated {
	e := run.Exit
	t := &v1.ContainerStateTerminated{
		ExitCode:    int32(e.Code),
		Reason:      "Error",
		StartedAt:   second(run.Started),
		FinishedAt:  second(e.At),
		ContainerID: ContainerID(pod, name, run.Number),
	}
	switch {
	case e.Unknown:
		t.ExitCode, t.Reason = lostExit, "ContainerStatusUnknown"
		t.Message = "the process ended while the host was not there to see how"
	case e.OOM:
		t.Reason = "OOMKilled"
	case e.Signal == 0 && e.Code == 0:
		t.Reason = "Completed"
	}
	if e.Signal != 0 && !e.Unknown {
		t.ExitCode, t.Signal = int32(128+e.Signal), int32(e.Signal)
	}
	if e.Message != "" {
		t.Message = e.Message
	}
	if t.Message == "" && st != nil && (st.Result == service.Unhealthy || st.Result == service.Resources) {
		t.Message = strings.TrimSpace(cause(st) + " " + st.Probe)
	}
	return t
}

// ended shows a container whose group is no more.
func ended(out *v1.ContainerStatus, st *service.Status, in Input) {
	switch {
	case st != nil && st.Main != nil && st.Main.Exit != nil:
		out.ContainerID = ContainerID(in.Pod, out.Name, st.Main.Number)
		out.State = v1.ContainerState{Terminated: terminated(in.Pod, out.Name, st.Main, st)}
	case out.State.Terminated != nil:
	default:
		t := &v1.ContainerStateTerminated{
			ExitCode: lostExit, Reason: "ContainerStatusUnknown", ContainerID: out.ContainerID,
			Message:    "the process is gone and the host does not know how it ended",
			FinishedAt: second(in.Now),
		}
		if r := out.State.Running; r != nil {
			t.StartedAt = r.StartedAt
		}
		out.State = v1.ContainerState{Terminated: t}
	}
}

// notYet is a container whose turn has not come.
func notYet(in Input) v1.ContainerState {
	if len(in.Pod.Spec.InitContainers) > 0 {
		return waiting(podspec.Initializing, "")
	}
	return waiting(podspec.Creating, "")
}

func waiting(reason, message string) v1.ContainerState {
	return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// second is a time as the API keeps it.
func second(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }
