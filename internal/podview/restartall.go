package podview

import (
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// startedReason is the kubelet's of AllContainersRestarting (pkg/kubelet/status).
const startedReason = "RestartAllContainersStarted"

// restarting is why all containers of the pod are started again, until the last
// of them are; empty where they are not.
func restarting(in Input) string {
	if in.Group == nil || in.Gone {
		return ""
	}
	for i := range in.Group.Services {
		if why := in.Group.Services[i].Again; why != "" {
			return why
		}
	}
	return ""
}

// again says whether a container that has ended, maybe because all are started
// again, is started whatever its own policy says.
func again(in Input, name string) bool {
	st := serviceOf(in.Group, name)
	if st == nil || in.Gone || !podspec.RestartsAll(in.Pod) {
		return false
	}
	return st.Again != "" || st.State == service.StartPre || st.State == service.Start
}

// initializedOnce: what has been initialized stays so while all start again.
func initializedOnce(in Input) bool {
	c := Condition(in.Previous, v1.PodInitialized)
	return podspec.RestartsAll(in.Pod) && c != nil && c.Status == v1.ConditionTrue
}
