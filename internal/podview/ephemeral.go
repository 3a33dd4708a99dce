package podview

import (
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/podspec"
)

// ephemeral are the statuses of the ephemeral containers. They are never ready,
// and what one lacks before it is on the host is its own matter.
func ephemeral(in Input, prev []v1.ContainerStatus) []v1.ContainerStatus {
	var out []v1.ContainerStatus
	lacks := in.Report
	for _, c := range podspec.Ephemeral(in.Pod) {
		in.Report.Blocked = nil
		lacks.Blocked = lacks.Ephemeral
		if b := blocked(lacks, c.Name); b != nil && serviceOf(in.Group, c.Name) == nil {
			in.Report.Blocked = []podspec.Blocked{*b}
		}
		s := container(in, &c, find(prev, c.Name))
		s.Ready, s.Started = false, nil
		out = append(out, s)
	}
	return out
}
