package agent

import (
	"context"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
)

// What the server and the host tell of pods and groups.

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
