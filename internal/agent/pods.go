package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/podview"
	"legion.dev/legion/internal/service"
)

// host is what the pods' loop needs of legiond.
type host interface {
	Put(ctx context.Context, group service.Group) error
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string, grace time.Duration) error
	Delete(ctx context.Context, name string, grace time.Duration) error
}

// podAPI is what the pods' loop needs of the API server.
type podAPI interface {
	PatchPodStatus(ctx context.Context, namespace, name string, patch []byte) (*v1.Pod, error)
	DeletePod(ctx context.Context, namespace, name string, uid types.UID) error
	CreateEvent(ctx context.Context, event *v1.Event) error
}

// pods turns the server's pods into the host's groups and the groups' status
// into the pods'. One goroutine owns the records; requests run beside it, at
// most one each way for a pod, and come back as news.
type pods struct {
	node podspec.Node
	host host
	api  podAPI
	log  *slog.Logger
	// life ends with the loop.
	life context.Context

	inbox   chan func(ctx context.Context, now time.Time)
	records map[types.UID]*record
	objects objects
	files   files
	// images is nil where the node runs none.
	images images
	// seccomp is the directory of the node's seccomp profiles.
	seccomp string
	// swept: what pods left that are gone was removed.
	swept bool
	// listed: the server has told all pods at least once.
	listed bool
	// hostSynced: the host has told all groups, and the watch is up.
	hostSynced bool
}

func newPods(node podspec.Node, host host, api podAPI, refs objectAPI, files files, log *slog.Logger) *pods {
	p := &pods{
		node: node, host: host, api: api, files: files, log: log,
		inbox:   make(chan func(context.Context, time.Time), 64),
		records: map[types.UID]*record{},
	}
	p.objects = objects{api: refs, watches: map[objectKey]*watched{}, news: func(ctx context.Context, key objectKey, object *podspec.Object) {
		p.post(ctx, func(ctx context.Context, now time.Time) { p.objectTold(ctx, key, object, now) })
	}}
	return p
}

// Run is the loop; it ends with ctx.
func (p *pods) Run(ctx context.Context) {
	p.life = ctx
	alarm := time.NewTimer(time.Hour)
	defer alarm.Stop()
	// looked is when all records were looked at last: what was due since must
	// not be passed over, though other news kept the loop busy meanwhile.
	for looked := time.Now(); ; {
		if next := p.next(looked); next.IsZero() {
			alarm.Reset(time.Hour)
		} else {
			alarm.Reset(max(0, time.Until(next)))
		}
		select {
		case <-ctx.Done():
			return
		case news := <-p.inbox:
			news(ctx, time.Now())
		case <-alarm.C:
			looked = time.Now()
			for _, r := range p.records {
				p.step(ctx, r, looked)
			}
		}
	}
}

// next is when, after then, a record wants to be looked at first.
func (p *pods) next(then time.Time) time.Time {
	var next time.Time
	earliest := func(at time.Time) {
		if at.After(then) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	for _, r := range p.records {
		earliest(r.toHost.retryAt)
		earliest(r.toAPI.retryAt)
		earliest(r.toDisk.retryAt)
		earliest(r.tokens.next())
		earliest(r.deadline())
		earliest(r.lookAgain)
		earliest(r.resizeAt)
		if !r.measuring && p.limited(r) {
			earliest(r.measureAt)
		}
		for _, w := range r.images {
			earliest(w.next())
		}
		if _, at := r.apiAction(p.hostSynced, then); !at.IsZero() {
			earliest(at)
		}
	}
	return next
}

// post hands news to the loop.
func (p *pods) post(ctx context.Context, news func(ctx context.Context, now time.Time)) {
	select {
	case p.inbox <- news:
	case <-ctx.Done():
	}
}

// sink is the pods' loop as the receiver of a watch of the server.
type sink struct {
	ctx context.Context
	p   *pods
}

func (s sink) Listed(list []*v1.Pod) {
	s.p.post(s.ctx, func(ctx context.Context, now time.Time) { s.p.podsListed(ctx, list, now) })
}

func (s sink) Changed(pod *v1.Pod) {
	s.p.post(s.ctx, func(ctx context.Context, now time.Time) { s.p.podChanged(ctx, pod, now) })
}

func (s sink) Deleted(pod *v1.Pod) {
	s.p.post(s.ctx, func(ctx context.Context, now time.Time) { s.p.podDeleted(ctx, pod.UID, now) })
}

func (p *pods) podsListed(ctx context.Context, list []*v1.Pod, now time.Time) {
	p.listed = true
	known := map[types.UID]bool{}
	for _, pod := range list {
		known[pod.UID] = true
		p.podChanged(ctx, pod, now)
	}
	for uid, r := range p.records {
		if !known[uid] {
			p.podDeleted(ctx, uid, now)
			p.step(ctx, r, now)
		}
	}
	p.sweep()
}

func (p *pods) record(uid types.UID) *record {
	r, ok := p.records[uid]
	if !ok {
		r = &record{uid: uid}
		p.records[uid] = r
	}
	return r
}

func (p *pods) podChanged(ctx context.Context, pod *v1.Pod, now time.Time) {
	r := p.record(pod.UID)
	if r.pod != nil && older(pod, r.pod) {
		return
	}
	first, anew := r.pod == nil, r.pod != nil && compiledAnew(r.pod, pod)
	r.pod = pod
	r.grace = graceOf(pod)
	if pod.DeletionTimestamp != nil && r.leaving.IsZero() {
		r.leaving = now
	}
	if first {
		r.added = now
		p.objects.want(p.life, pod)
		r.allocated = given(pod)
		p.allocate(r, now)
		p.compile(r)
		if pod.Status.StartTime != nil {
			// An agent before this one has told already.
			for _, w := range r.warnings() {
				r.told(w)
			}
		}
	} else if anew {
		p.compileChanged(r)
	}
	p.step(ctx, r, now)
}

// compiledAnew says whether what a pod's group is made of is another now: the
// pod may see its labels and annotations, and be given ephemeral containers.
func compiledAnew(old, pod *v1.Pod) bool {
	return !maps.Equal(old.Labels, pod.Labels) || !maps.Equal(old.Annotations, pod.Annotations) ||
		len(old.Spec.EphemeralContainers) != len(pod.Spec.EphemeralContainers) ||
		!apiequality.Semantic.DeepEqual(podspec.Asked(old), podspec.Asked(pod)) || !apiequality.Semantic.DeepEqual(old.Spec.Resources, pod.Spec.Resources)
}

func (p *pods) compileChanged(r *record) {
	if r.group != nil {
		p.allocate(r, time.Now())
		p.objects.want(p.life, r.pod)
		p.compile(r)
	}
}

// older: what a watch brings may be from before the answer to a patch.
func older(pod, than *v1.Pod) bool {
	c, err := resourceversion.CompareResourceVersion(pod.ResourceVersion, than.ResourceVersion)
	return err == nil && c < 0
}

// graceOf is how long the pod may take to end, at least a second.
func graceOf(pod *v1.Pod) time.Duration {
	seconds := int64(v1.DefaultTerminationGracePeriodSeconds)
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		seconds = *s
	}
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		seconds = *s
	}
	return time.Duration(max(seconds, 1)) * time.Second
}

func (p *pods) podDeleted(ctx context.Context, uid types.UID, now time.Time) {
	r, ok := p.records[uid]
	if !ok {
		return
	}
	r.pod = nil
	p.step(ctx, r, now)
}

// HostEvent takes one event of a watch of the host.
func (p *pods) HostEvent(ctx context.Context, e hostapi.Event) {
	p.post(ctx, func(ctx context.Context, now time.Time) { p.hostEvent(ctx, e, now) })
}

// HostLost says that the watch of the host broke.
func (p *pods) HostLost(ctx context.Context) {
	p.post(ctx, func(context.Context, time.Time) {
		p.hostSynced = false
		for _, r := range p.records {
			r.seen = false
		}
	})
}

func (p *pods) hostEvent(ctx context.Context, e hostapi.Event, now time.Time) {
	switch e.Type {
	case hostapi.Synced:
		p.hostSynced = true
		for _, r := range p.records {
			if !r.seen && !r.toHost.busy {
				p.groupRemoved(r)
			}
			r.toHost.succeeded()
			p.step(ctx, r, now)
		}
		p.sweep()
	case hostapi.Changed:
		uid, ok := podspec.UID(e.Name)
		if !ok || e.Group == nil {
			return
		}
		r := p.record(uid)
		r.seen, r.put, r.lost = true, true, false
		r.host, r.boot = &e.Group.Status, e.Group.Spec.Boot
		r.runs, r.mounted = e.Group.Spec.Images(), mountedImages(&e.Group.Spec)
		p.compare(r, &e.Group.Spec)
		if r.grace == 0 {
			r.grace = e.Group.Spec.Grace
		}
		p.step(ctx, r, now)
	case hostapi.Removed:
		uid, ok := podspec.UID(e.Name)
		if !ok {
			return
		}
		if r, ok := p.records[uid]; ok {
			if e.Group != nil {
				r.host = &e.Group.Status
			}
			p.groupRemoved(r)
			p.step(ctx, r, now)
		}
	}
}

// groupRemoved: the host has the group no more. If the agent did not ask for
// that, the group is put there again.
func (p *pods) groupRemoved(r *record) {
	if r.deleted || (r.pod != nil && r.pod.DeletionTimestamp != nil && r.put) {
		r.gone = true
		return
	}
	r.lost = r.host != nil
	r.host, r.put, r.started = nil, false, false
}

// step makes the requests that a record wants now.
func (p *pods) step(ctx context.Context, r *record, now time.Time) {
	if p.hostSynced {
		p.compileAgain(r, now)
		p.resizeAgain(r, now)
		p.fetch(r, now)
		p.write(p.life, r, now)
		p.measure(r, now)
		r.observe(p.node.IP, now)
		if r.toHost.free(now) {
			if a := r.hostAction(p.listed); a != none && !(a == putGroup && r.unwritten()) {
				p.askHost(ctx, r, a)
			}
		}
	}
	r.tell()
	if r.toAPI.free(now) {
		if a, _ := r.apiAction(p.hostSynced, now); a != none {
			p.askAPI(ctx, r, a)
		}
	}
	if r.pod == nil {
		p.objects.release(r.uid)
	}
	if r.pod == nil && !r.toHost.busy && !r.toAPI.busy && !r.toDisk.busy && p.listed && p.hostSynced && (r.gone || (r.host == nil && !r.put)) {
		delete(p.records, r.uid)
		p.removeFiles(r.uid)
	}
}

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
