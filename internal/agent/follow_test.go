package agent

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// flaky is a server that is there or not.
type flaky struct {
	down  bool
	asked int
	// answered is when it last did.
	answered time.Time
	open     *watch.FakeWatcher
}

func (f *flaky) ListWithContext(context.Context, metav1.ListOptions) (runtime.Object, error) {
	f.asked++
	if f.down {
		return nil, errors.New("connection refused")
	}
	f.answered = time.Now()
	return &v1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
}

func (f *flaky) WatchWithContext(context.Context, metav1.ListOptions) (watch.Interface, error) {
	f.asked++
	if f.down {
		return nil, errors.New("connection refused")
	}
	f.answered = time.Now()
	f.open = watch.NewFake()
	return f.open, nil
}

// lose breaks the watch.
func (f *flaky) lose() {
	f.down = true
	f.open.Stop()
	synctest.Wait()
}

func TestFollowComesBackSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		server := &flaky{}
		done := make(chan struct{})
		p := pace{100 * time.Millisecond, 2 * time.Second}
		go func() {
			defer close(done)
			follow(ctx, server, &v1.Pod{}, &podStore{sink: ignore{}}, p, func(error) {})
		}()
		synctest.Wait()
		// However often the server goes and however long it is away: it is asked
		// again within most of its return.
		for _, away := range []time.Duration{0, time.Second, time.Minute, 3 * time.Second, time.Hour, 2 * time.Second} {
			server.lose()
			before := server.asked
			time.Sleep(away)
			if asked := server.asked - before; asked > 10+2*int(away/(p.most/2)) {
				t.Errorf("%d requests while the server was away for %s", asked, away)
			}
			server.down = false
			back := time.Now()
			time.Sleep(p.most)
			synctest.Wait()
			if !server.answered.After(back) {
				t.Errorf("away for %s: not asked within %s of its return", away, p.most)
			}
			time.Sleep(steady)
		}
		// After a steady watch the first try comes at once.
		server.lose()
		server.down = false
		back := time.Now()
		time.Sleep(p.least)
		synctest.Wait()
		if !server.answered.After(back) {
			t.Errorf("not asked within %s of a short loss", p.least)
		}
		cancel()
		<-done
	})
}

type ignore struct{}

func (ignore) Listed([]*v1.Pod) {}
func (ignore) Changed(*v1.Pod)  {}
func (ignore) Deleted(*v1.Pod)  {}

var _ cache.ListerWatcherWithContext = (*flaky)(nil)
