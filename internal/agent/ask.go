package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// Questions that other goroutines put to the pods' loop.

// ask runs f in the loop and gives its answer.
func ask[T any](ctx context.Context, p *pods, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	p.post(ctx, func(context.Context, time.Time) {
		value, err := f()
		got <- answer{value, err}
	})
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// list gives the pods of this node.
func (p *pods) list(ctx context.Context) []*v1.Pod {
	list, _ := ask(ctx, p, func() ([]*v1.Pod, error) {
		var list []*v1.Pod
		for _, r := range p.records {
			if r.pod != nil {
				list = append(list, r.pod)
			}
		}
		return list, nil
	})
	return list
}

// find tells of a container or a pod; see kubelet.
func (p *pods) find(ctx context.Context, namespace, name, container string) (target, error) {
	return ask(ctx, p, func() (target, error) {
		var found *record
		for _, r := range p.records {
			// Of two pods of one name the one that is not on its way out counts.
			if r.pod != nil && r.pod.Namespace == namespace && r.pod.Name == name && (found == nil || r.pod.DeletionTimestamp == nil) {
				found = r
			}
		}
		if found == nil {
			return target{}, fmt.Errorf("pod %s/%s is not on node %s", namespace, name, p.node.Name)
		}
		return found.target(container)
	})
}

// again is find for a pod that was found before.
func (p *pods) again(ctx context.Context, uid types.UID, container string) (target, error) {
	return ask(ctx, p, func() (target, error) {
		if r, ok := p.records[uid]; ok {
			return r.target(container)
		}
		return target{UID: uid, Done: closed}, nil
	})
}

// closed stands for what has happened already.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// target is what a reader of a container's log, and who would run a command
// beside it, needs to know; an empty name is the pod.
func (r *record) target(container string) (target, error) {
	t, defined := target{UID: r.uid, Done: r.over(), Changed: r.next()}, false
	if r.status != nil {
		for _, c := range slices.Concat(r.status.InitContainerStatuses, r.status.ContainerStatuses, r.status.EphemeralContainerStatuses) {
			if w := c.State.Waiting; c.Name == container && w != nil {
				t.Waiting = w.Reason + ": " + w.Message
			}
		}
	}
	if r.pod != nil {
		for _, c := range slices.Concat(r.pod.Spec.InitContainers, r.pod.Spec.Containers, podspec.Ephemeral(r.pod)) {
			if c.Name == container {
				t.Console, defined = podspec.Console(&c), true
			}
		}
	}
	if r.host == nil || container == "" {
		return t, nil
	}
	for i := range r.host.Services {
		s := &r.host.Services[i]
		if s.Name != container {
			continue
		}
		if s.Main != nil {
			t.Run, t.Runs = s.Main.Number, s.Main.Exit == nil
			t.Begins = t.Runs && s.Main.PID == 0
		}
		if s.Previous != nil {
			t.Before = s.Previous.Number
		}
		if s.Main != nil && !s.Held && (s.State == service.Dead || s.State == service.Failed) {
			t.Done = closed // the others of the pod may go on
		}
		return t, nil
	}
	if defined {
		return t, nil // it is on its way there
	}
	return t, fmt.Errorf("pod %s has no container %q on the host", r.uid, container)
}

// over is closed once nothing of the pod runs any more or will.
func (r *record) over() <-chan struct{} {
	if r.ended == nil {
		r.ended = make(chan struct{})
	}
	r.tell()
	return r.ended
}

// next is closed at the next news.
func (r *record) next() <-chan struct{} {
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed
}

// tell wakes those who wait for news or the end of a record.
func (r *record) tell() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
	if r.ended == nil || (!r.gone && r.pod != nil && (!r.finished() || r.alive())) {
		return
	}
	select {
	case <-r.ended:
	default:
		close(r.ended)
	}
}
