package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Election decides by a Lease which of several processes works. The zero value
// is ready; its methods may be called from anywhere.
type Election struct {
	// Namespace and Name of the Lease. Default kube-system, legion-controller.
	Namespace, Name string
	// Identity tells this process from the others. Default: the host's name and
	// a random part.
	Identity string
	// Duration is how long the others wait for one that is silent. The one that
	// works stops before that: 14/15 of it after its last renewal. Default 15 s.
	Duration time.Duration
	// Labels are put on the Lease by the one that works.
	Labels map[string]string
	// Keep leaves the Lease this process's when the work ends: the next one of
	// the same Identity goes on at once, the others wait.
	Keep bool
	// Log is told who works. Default: slog.Default().
	Log *slog.Logger

	mu      sync.Mutex
	leader  string
	stop    context.CancelFunc // of the work
	renewed time.Time          // when the last renewal that succeeded was begun
}

func (e *Election) complete() {
	if e.Namespace == "" {
		e.Namespace = metav1.NamespaceSystem
	}
	if e.Name == "" {
		e.Name = FieldManager
	}
	if e.Identity == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		e.Identity = host + "_" + rand.Text()[:8]
	}
	if e.Duration <= 0 {
		e.Duration = 15 * time.Second
	}
	if e.Log == nil {
		e.Log = slog.Default()
	}
}

// Lead runs work while this process holds the Lease, again each time that it
// has won it back, until ctx ends or work fails. The Lease is given up only
// after work has returned, so that no two processes ever work at a time.
func (e *Election) Lead(ctx context.Context, client kubernetes.Interface, work func(context.Context) error) error {
	e.complete()
	for ctx.Err() == nil {
		if err := e.term(ctx, client, work); err != nil {
			return err
		}
	}
	return nil
}

func (e *Election) lease() string { return e.Namespace + "/" + e.Name }

// Leader returns who holds the Lease as far as is known, "" if nobody is.
func (e *Election) Leader() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.leader
}

// Holds says whether the Lease is this process's for sure, and it works. If it
// is not, since the process was stopped for so long that another one may work by
// now, the work is ended too.
func (e *Election) Holds() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stop == nil {
		return false
	}
	if elapsed(e.renewed) >= e.Duration {
		e.stop()
		return false
	}
	return true
}

// elapsed is the time since then, also by the clock on the wall: the other one
// stands still while the machine sleeps.
func elapsed(then time.Time) time.Duration {
	return max(time.Since(then), time.Now().Round(0).Sub(then.Round(0)))
}

// GiveUp frees the Lease that an earlier process of this Identity has kept.
func (e *Election) GiveUp(ctx context.Context, client kubernetes.Interface) {
	e.complete()
	e.release(ctx, e.lock(client))
}

// term is one attempt to win the Lease, and the work until it is lost.
func (e *Election) term(ctx context.Context, client kubernetes.Interface, work func(context.Context) error) error {
	lock := e.lock(client)
	won, over := make(chan context.Context, 1), make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:          lock,
		LeaseDuration: e.Duration, RenewDeadline: e.Duration * 8 / 15, RetryPeriod: e.Duration * 2 / 15,
		Name: e.Name,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) { won <- leading },
			OnStoppedLeading: func() {},
			OnNewLeader:      e.noteLeader,
		},
	})
	if err != nil {
		return fmt.Errorf("cannot take part in the election: %w", err)
	}
	// Renewed until the work has ended, also where that was asked for.
	electing, resign := context.WithCancel(context.WithoutCancel(ctx))
	defer resign()
	go func() {
		defer close(over)
		elector.Run(electing)
	}()
	select {
	case <-ctx.Done():
		resign()
		<-over
		if elector.IsLeader() && !e.Keep {
			e.release(ctx, lock)
		}
		return nil
	case leading := <-won:
		e.Log.Info("leading", "lease", e.lease(), "identity", e.Identity)
		working, stop := context.WithCancel(leading)
		defer context.AfterFunc(ctx, stop)()
		e.working(stop)
		err := work(working)
		e.working(nil)
		stop()
		if leading.Err() != nil {
			<-over
			e.Log.Warn("the Lease could not be renewed in time: the controllers were stopped", "lease", e.lease())
			return nil
		}
		resign()
		<-over
		if !e.Keep || ctx.Err() == nil {
			e.release(ctx, lock)
		}
		return err
	}
}

// Check returns an error if the work goes on though the Lease may be lost: then
// something is stuck.
func (e *Election) Check() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if since := elapsed(e.renewed); e.stop != nil && since >= e.Duration {
		return fmt.Errorf("the Lease %s was last renewed %v ago, and the controllers have not ended", e.lease(), since.Round(time.Second))
	}
	return nil
}

// working notes how the work is ended, nil when it has.
func (e *Election) working(stop context.CancelFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stop = stop
}

func (e *Election) noteLeader(identity string) {
	e.mu.Lock()
	e.leader = identity
	e.mu.Unlock()
	if identity != e.Identity && identity != "" {
		e.Log.Info("standing by: another one leads", "lease", e.lease(), "leader", identity)
	}
}

// release lets the others go on at once.
func (e *Election) release(ctx context.Context, lock *timedLock) {
	record, _, err := lock.Get(context.WithoutCancel(ctx))
	if err != nil || record.HolderIdentity != e.Identity {
		return
	}
	now := metav1.Now()
	free := resourcelock.LeaderElectionRecord{LeaderTransitions: record.LeaderTransitions, LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now}
	if err := lock.Update(context.WithoutCancel(ctx), free); err != nil && !apierrors.IsConflict(err) {
		e.Log.Warn("cannot give up the Lease; it ends by itself", "lease", e.lease(), "error", err)
	}
	e.noteLeader("")
}

func (e *Election) lock(client kubernetes.Interface) *timedLock {
	return &timedLock{
		Interface: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: e.Identity},
			Labels:     e.Labels,
		},
		election: e,
	}
}

// timedLock bounds each request for the Lease. The time until a renewal is
// given up counts from the answer to the one before; if that answer could take
// long, the others would begin earlier than this process stops.
type timedLock struct {
	resourcelock.Interface
	election *Election
}

func (l *timedLock) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, l.election.Duration*4/15)
}

func (l *timedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	return l.Interface.Get(ctx)
}

func (l *timedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, record, l.Interface.Create)
}

func (l *timedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, record, l.Interface.Update)
}

func (l *timedLock) write(ctx context.Context, record resourcelock.LeaderElectionRecord, do func(context.Context, resourcelock.LeaderElectionRecord) error) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	began := time.Now()
	if err := do(ctx, record); err != nil {
		return err
	}
	l.election.mu.Lock()
	l.election.renewed = began
	l.election.mu.Unlock()
	return nil
}
