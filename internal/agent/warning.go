package agent

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/podspec"
)

// component is the source of the agent's events.
const component = "legion-agent"

// warning is what a person must be told of the pod once, with its reason; empty
// if there is nothing.
func (r *record) warning() (reason, message string) {
	switch {
	case len(r.blocked()) > 0:
		b := r.report.Blocked[0]
		if b.Reason == podspec.Creating && b.Message != "" {
			return "FailedMount", b.Message
		}
		if b.Reason == podspec.Creating {
			return "", ""
		}
		return b.Reason, b.Message
	case r.diskTrouble != "":
		return "FailedMount", r.diskTrouble
	case len(r.report.NotHonoured) > 0:
		return "NotHonoured", "these fields have no effect on this node yet: " + strings.Join(r.report.NotHonoured, ", ")
	case len(r.report.Remarks) > 0:
		return "Remark", strings.Join(r.report.Remarks, "; ")
	default:
		return "", ""
	}
}

func warningEvent(pod *v1.Pod, node, reason, message string, now time.Time) *v1.Event {
	at := metav1.NewTime(now)
	return &v1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Name:      fmt.Sprintf("%s.%x", pod.Name, now.UnixNano()),
			Namespace: pod.Namespace,
		},
		InvolvedObject: v1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		},
		Reason: reason, Message: message, Type: v1.EventTypeWarning,
		Source:         v1.EventSource{Component: component, Host: node},
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: component, ReportingInstance: node,
	}
}
