package controller

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/ptr"
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
	holding context.Context    // while the work goes on: ends where the Lease is lost
	drop    context.CancelFunc // ends holding, and with it the work
	writes  sync.WaitGroup     // those of the work that are under way
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
// after work has returned and its last write was answered, so that no two
// processes ever work at a time.
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
	return e.holds()
}

// holds is Holds; the caller holds the lock.
func (e *Election) holds() bool {
	if e.holding == nil {
		return false
	}
	if elapsed(e.renewed) >= e.Duration {
		e.drop()
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
	waiting, enough := context.WithCancel(ctx)
	defer enough()
	select {
	case <-ctx.Done():
		resign()
		<-over
		if elector.IsLeader() && !e.Keep {
			e.release(ctx, lock)
		}
		return nil
	case <-e.freed(waiting, client):
		// The next term asks for it at once.
		resign()
		<-over
		return nil
	case leading := <-won:
		enough()
		e.Log.Info("leading", "lease", e.lease(), "identity", e.Identity)
		sure, err := e.work(ctx, leading, work)
		if leading.Err() != nil {
			<-over
			e.Log.Warn("the Lease could not be renewed in time: the controllers were stopped", "lease", e.lease())
			return nil
		}
		resign()
		<-over
		if sure && (!e.Keep || ctx.Err() == nil) {
			e.release(ctx, lock)
		}
		return err
	}
}

// work runs the work until it ends, ctx does, or leading, which is when the
// Lease is lost. It is sure that nothing is written any more unless a write had
// to be cut off, which may be carried out yet.
func (e *Election) work(ctx, leading context.Context, work func(context.Context) error) (sure bool, err error) {
	holding, drop := context.WithCancel(leading)
	defer drop()
	working, stop := context.WithCancel(holding)
	leave := func() {
		stop()
		time.AfterFunc(e.Duration/5, drop)
	}
	defer context.AfterFunc(ctx, leave)()
	e.working(holding, drop)
	err = work(working)
	e.idle()
	leave()
	e.writes.Wait()
	return holding.Err() == nil, err
}

// freed tells when somebody gives the Lease up: who waits for it need not find
// that out in its turn. It never does where the Lease cannot be watched.
func (e *Election) freed(ctx context.Context, client kubernetes.Interface) <-chan struct{} {
	freed := make(chan struct{})
	go func() {
		for ctx.Err() == nil {
			if e.sawFreed(ctx, client) {
				close(freed)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(e.Duration / 3):
			}
		}
	}()
	return freed
}

// sawFreed follows the Lease until it is given up, or cannot be followed.
func (e *Election) sawFreed(ctx context.Context, client kubernetes.Interface) bool {
	w, err := client.CoordinationV1().Leases(e.Namespace).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, e.Name).String(),
	})
	if err != nil {
		return false
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case event, ok := <-w.ResultChan():
			if !ok {
				return false
			}
			// How it was at first is not news.
			lease, ok := event.Object.(*coordinationv1.Lease)
			if ok && event.Type == watch.Modified && lease.Name == e.Name && ptr.Deref(lease.Spec.HolderIdentity, "") == "" {
				return true
			}
		}
	}
}

// Check returns an error if the work goes on though the Lease may be lost: then
// something is stuck.
func (e *Election) Check() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if since := elapsed(e.renewed); e.holding != nil && since >= e.Duration {
		return fmt.Errorf("the Lease %s was last renewed %v ago, and the controllers have not ended", e.lease(), since.Round(time.Second))
	}
	return nil
}

// working notes that the work goes on, and how it is ended.
func (e *Election) working(holding context.Context, drop context.CancelFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holding, e.drop = holding, drop
}

// idle notes that it has ended.
func (e *Election) idle() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.holding, e.drop = nil, nil
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
