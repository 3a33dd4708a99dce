package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/podview"
)

// What is asked of the host and of the server, and what they answer.

func (p *pods) askHost(ctx context.Context, r *record, a action) {
	r.toHost.busy = true
	name, grace := podspec.GroupName(r.uid), r.grace
	if r.evicted != "" {
		grace = time.Second // as short as it gets
	}
	var call func() error
	switch a {
	case putGroup:
		r.renew = false
		group := *r.group
		group.Boot = group.Boot && !r.done()
		call = func() error { return p.host.Put(ctx, group) }
	case startGroup:
		call = func() error { return p.host.Start(ctx, name) }
	case stopGroup:
		call = func() error { return p.host.Stop(ctx, name, grace) }
	default:
		call = func() error { return p.host.Delete(ctx, name, grace) }
	}
	go func() {
		err := call()
		p.post(ctx, func(ctx context.Context, now time.Time) {
			r.toHost.busy = false
			p.hostAnswered(r, a, grace, err, now)
			p.step(ctx, r, now)
		})
	}()
}

func (p *pods) hostAnswered(r *record, a action, grace time.Duration, err error, now time.Time) {
	var refused *hostapi.Error
	if errors.As(err, &refused) && refused.Code != "unreachable" {
		switch {
		case a == deleteGroup && refused.Code == "not-found":
			r.deleted, r.gone = true, true
			return
		case a == putGroup:
			r.refusal = refused.Message
			if refused.Hint != "" {
				r.refusal += "; " + refused.Hint
			}
		}
	}
	if err != nil {
		p.log.Warn("the host did not take a request", "group", podspec.GroupName(r.uid), "error", err)
		r.toHost.failed(now)
		return
	}
	r.toHost.succeeded()
	switch a {
	case putGroup:
		r.put, r.refusal = true, ""
		if r.pod != nil && r.done() {
			r.boot = false
		}
	case startGroup:
		r.started = true
	case stopGroup:
		r.halted = true
	case deleteGroup:
		r.deleted, r.deletedGrace = true, grace
	}
}

func (p *pods) askAPI(ctx context.Context, r *record, a action) {
	r.toAPI.busy = true
	pod, asked := r.pod, r.status
	var call func() (*v1.Pod, error)
	switch a {
	case patchStatus:
		patch := statusPatch(pod, r.status)
		call = func() (*v1.Pod, error) { return p.api.PatchPodStatus(ctx, pod.Namespace, pod.Name, patch) }
	case recordEvent:
		w := r.untold()
		event := warningEvent(pod, p.node.Name, w.reason, w.message, time.Now())
		r.told(*w)
		call = func() (*v1.Pod, error) { return nil, p.api.CreateEvent(ctx, event) }
	default:
		call = func() (*v1.Pod, error) { return nil, p.api.DeletePod(ctx, pod.Namespace, pod.Name, pod.UID) }
	}
	go func() {
		newer, err := call()
		p.post(ctx, func(ctx context.Context, now time.Time) {
			r.toAPI.busy = false
			p.apiAnswered(r, a, asked, newer, err, now)
			p.step(ctx, r, now)
		})
	}()
}

func (p *pods) apiAnswered(r *record, a action, asked *v1.PodStatus, newer *v1.Pod, err error, now time.Time) {
	switch {
	case err == nil:
		r.toAPI.succeeded()
		if newer != nil && r.pod != nil && newer.UID == r.uid && older(r.pod, newer) {
			newer.ManagedFields = nil
			anew := compiledAnew(r.pod, newer)
			r.pod = newer
			r.grace = graceOf(newer)
			if anew {
				p.compileChanged(r)
			}
		}
		if a == patchStatus && newer != nil && newer.UID == r.uid && !sameStatus(&newer.Status, asked) {
			// Writing it again at once would go on for ever.
			p.log.Warn("the server keeps another status than it was given", "pod", r.uid)
			r.toAPI.failed(now)
		}
		if a == deletePod {
			// The watch will say so too; until then there is nothing to do.
			r.pod = nil
		}
	case apierrors.IsNotFound(err), a == deletePod && apierrors.IsConflict(err):
		if a != recordEvent {
			r.pod = nil
		}
	case a == recordEvent:
		p.log.Warn("cannot record an event", "pod", r.uid, "error", err)
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) { // of a namespace that ends
			delete(r.warned, r.lastTold)
			r.toAPI.failed(now)
		}
	default:
		p.log.Warn("the server did not take a request", "pod", r.uid, "error", err)
		r.toAPI.failed(now)
	}
}

// statusPatch is a strategic merge patch of all that the agent writes.
func statusPatch(pod *v1.Pod, status *v1.PodStatus) []byte {
	s := v1.PodStatus{
		ObservedGeneration: status.ObservedGeneration, Phase: status.Phase,
		HostIP: status.HostIP, PodIP: status.PodIP, StartTime: status.StartTime,
		ContainerStatuses: status.ContainerStatuses, InitContainerStatuses: status.InitContainerStatuses,
		EphemeralContainerStatuses: status.EphemeralContainerStatuses,
		Reason:                     status.Reason, Message: status.Message,
	}
	// Merged by type, a condition would keep a reason that the new one has not.
	conditions := []any{}
	for _, c := range foreign(nil, status.Conditions) {
		conditions = append(conditions, merged(c, map[string]any{"reason": orNull(c.Reason), "message": orNull(c.Message)}))
	}
	for _, kind := range podview.Over(&pod.Status, status) {
		conditions = append(conditions, map[string]any{"type": kind, "$patch": "delete"})
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status": merged(s, map[string]any{
			"conditions": conditions,
			"hostIPs":    replaced(status.HostIPs),
			"podIPs":     replaced(status.PodIPs),
		}),
	})
	if err != nil {
		panic(fmt.Sprintf("a pod status does not encode: %v", err))
	}
	return body
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// merged is v's fields and those of more.
func merged(v any, more map[string]any) map[string]any {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a status does not encode: %v", err))
	}
	out := map[string]any{}
	_ = json.Unmarshal(text, &out)
	for name, value := range more {
		out[name] = value
	}
	return out
}

// replaced is a list that takes the place of one that would be merged.
func replaced[T any](list []T) []any {
	out := []any{map[string]any{"$patch": "replace"}}
	for _, v := range list {
		out = append(out, v)
	}
	return out
}
