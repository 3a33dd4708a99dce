package apiserver

import (
	"context"
	"net/http"
	"time"
)

// A write of the API is carried out when it is its turn: so many at a time for
// each processor. More would gain nothing, since they only wait for the
// processor and the disk, and would take it from the controllers of this
// process, on which most of them depend, and memory besides. While those write
// a lot themselves there are fewer turns: a pod is better bound to its node
// than the one before it reported as ready.
const (
	writesPerProcessor = 8
	fewPerProcessor    = 1
	// longestTurn is when a write goes on out of turn: nothing may wait for
	// ever for others that wait for it.
	longestTurn = 5 * time.Second
)

// turns are those of writes.
type turns struct {
	all, few chan struct{}
	// busy says whether there are few.
	busy func() bool
}

func newTurns(processors int, busy func() bool) *turns {
	return &turns{make(chan struct{}, writesPerProcessor*processors), make(chan struct{}, fewPerProcessor*processors), busy}
}

// inTurn lets writes through as their turn comes.
func inTurn(next http.Handler, t *turns) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		default:
			next.ServeHTTP(w, r)
			return
		}
		// Such a request, to exec or the tunnel, goes on for hours.
		if r.Header.Get("Upgrade") == "" {
			defer t.await(r.Context())()
		}
		// Who gave up is told so by the handler, in its own way.
		next.ServeHTTP(w, r)
	})
}

// await returns when a write may go on, and what ends its turn.
func (t *turns) await(ctx context.Context) func() {
	if !take(ctx, t.all) {
		return func() {}
	}
	if !t.busy() || !take(ctx, t.few) {
		return func() { <-t.all }
	}
	return func() {
		<-t.few
		<-t.all
	}
}

// take takes a turn, unless it takes too long.
func take(ctx context.Context, turn chan struct{}) bool {
	select {
	case turn <- struct{}{}:
		return true
	default:
	}
	patience := time.NewTimer(longestTurn)
	defer patience.Stop()
	select {
	case turn <- struct{}{}:
		return true
	case <-patience.C:
	case <-ctx.Done():
	}
	return false
}
