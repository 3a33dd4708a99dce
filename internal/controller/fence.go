package controller

import (
	"errors"
	"net/http"

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

// Allow returns ErrLeaseLost where the work may not write.
func (e *Election) Allow() error {
	if e.Holds() {
		return nil
	}
	return ErrLeaseLost
}

type fence struct {
	next     http.RoundTripper
	election *Election
}

func (f fence) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		if err := f.election.Allow(); err != nil {
			if r.Body != nil {
				_ = r.Body.Close()
			}
			return nil, err
		}
	}
	return f.next.RoundTrip(r)
}

// WrappedRoundTripper lets client-go close what is idle.
func (f fence) WrappedRoundTripper() http.RoundTripper { return f.next }
