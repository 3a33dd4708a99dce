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

// warning is what a person must be told of the pod, once.
type warning struct {
	// kind keeps warnings apart that do not take each other's place.
	kind, reason, message string
}

// The kinds of warning.
const (
	ofPod     = "pod"
	ofSecrets = "secrets"
	ofDisk    = "disk"
	ofResize  = "resize"
)

// warnings are what a person must be told of the pod now.
func (r *record) warnings() []warning {
	var out []warning
	if len(r.missingSecrets) > 0 { // the kubelet's words
		out = append(out, warning{
			ofSecrets, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(r.missingSecrets, ", ")),
		})
	}
	if r.evicted != "" {
		out = append(out, warning{ofDisk, "Evicted", r.evicted})
	}
	if r.refused.Reason != "" {
		out = append(out, warning{ofResize, "Resize" + r.refused.Reason, r.refused.Message})
	}
	if reason, message := r.trouble(); message != "" {
		out = append(out, warning{ofPod, reason, message})
	}
	return out
}

// untold is the first of them that has not been told, nil for none.
func (r *record) untold() *warning {
	for _, w := range r.warnings() {
		if r.warned[w.kind] != w.message {
			return &w
		}
	}
	return nil
}

// told notes that a warning is told.
func (r *record) told(w warning) {
	if r.warned == nil {
		r.warned = map[string]string{}
	}
	r.warned[w.kind], r.lastTold = w.message, w.kind
}

// trouble is what is wrong with the pod, with its reason; empty if there is
// nothing.
func (r *record) trouble() (reason, message string) {
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
