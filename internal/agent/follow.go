package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// pace is how long follow waits before it asks again: least, then twice as long
// each time up to most, each shortened by up to a half, so that the agents of a
// fleet do not come back to one server at once.
type pace struct{ least, most time.Duration }

// steady is how long a watch lasts before its loss is no sign of trouble.
const steady = 5 * time.Second

// follow tells store of what lw lists and watches, until ctx ends: first and
// after each loss the full list, then each change. Each request's outcome goes
// to outcome. In place of the reflector's own loop, which goes on waiting long
// for two minutes after a server is back.
func follow(ctx context.Context, lw cache.ListerWatcherWithContext, object runtime.Object, store cache.ReflectorStore, p pace, outcome func(error)) {
	var opened time.Time
	told := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := lw.ListWithContext(ctx, options)
			outcome(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			w, err := lw.WatchWithContext(ctx, options)
			outcome(err)
			if err != nil {
				// Without its type, by which the reflector would try again itself.
				return nil, errors.New(err.Error())
			}
			if opened.IsZero() {
				opened = time.Now()
			}
			return w, nil
		},
	}
	reflector := cache.NewReflectorWithOptions(told, object, store, cache.ReflectorOptions{Name: "agent"})
	for wait := p.least; ctx.Err() == nil; wait = min(2*wait, p.most) {
		opened = time.Time{}
		_ = reflector.ListAndWatchWithContext(ctx) // outcome has been told
		if !opened.IsZero() && time.Since(opened) >= steady {
			wait = p.least
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
	}
}
