package agent

import (
	"context"
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/podspec"
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

func (p *pods) record(uid types.UID) *record {
	r, ok := p.records[uid]
	if !ok {
		r = &record{uid: uid}
		p.records[uid] = r
	}
	return r
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
