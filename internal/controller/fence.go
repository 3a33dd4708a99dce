package controller

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// ErrLeaseLost is why a write is not sent.
var ErrLeaseLost = errors.New("the Lease is not this process's any more: another one may work by now")

// Fence returns the configuration for the clients of the work. What they would
// write while the Lease may be another's is not sent, whoever asks for it and
// whatever its context says: a process that was stopped goes on where it was,
// before its own timers tell it what it missed.
func (e *Election) Fence(config *rest.Config) *rest.Config {
	fenced := rest.CopyConfig(config)
	fenced.Wrap(func(next http.RoundTripper) http.RoundTripper { return fence{next, e} })
	return fenced
}

// longestWrite is how long a write may take that has no deadline: as long as an
// API server gives a request.
const longestWrite = time.Minute

// Write begins a write of the work, or returns ErrLeaseLost where the work may
// not write. It goes on under the context that is returned, also when the work
// is to end: the Lease is kept until it is done, which the caller tells. Only
// where the Lease is lost, or the work is past waiting for, it is cut off.
func (e *Election) Write(ctx context.Context) (writing context.Context, done func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.holds() {
		return nil, nil, ErrLeaseLost
	}
	e.writes.Add(1)
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(longestWrite)
	}
	writing, cancel := context.WithDeadline(context.WithoutCancel(ctx), end)
	dropped := context.AfterFunc(e.holding, cancel)
	return writing, func() {
		dropped()
		cancel()
		e.writes.Done()
	}, nil
}

type fence struct {
	next     http.RoundTripper
	election *Election
}

func (f fence) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return f.next.RoundTrip(r)
	}
	writing, done, err := f.election.Write(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	response, err := f.next.RoundTrip(r.WithContext(writing))
	if err != nil {
		done()
		return nil, err
	}
	response.Body = &answer{response.Body, sync.OnceFunc(done)}
	return response, nil
}

// answer is what a write was answered with; it is done when that was read.
type answer struct {
	io.ReadCloser
	done func()
}

func (a *answer) Close() error {
	defer a.done()
	return a.ReadCloser.Close()
}

// WrappedRoundTripper lets client-go close what is idle.
func (f fence) WrappedRoundTripper() http.RoundTripper { return f.next }
