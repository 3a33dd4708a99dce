package controller

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/rest"
)

// sent counts the requests that get through.
type sent map[string]int

func (s sent) RoundTrip(r *http.Request) (*http.Response, error) {
	s[r.Method]++
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
}

// A process that was stopped while it led, and goes on after its Lease has
// ended, reads and writes not: before any timer of its own has said so.
func TestFence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		through := sent{}
		e := &Election{Duration: 15 * time.Second}
		client, err := rest.HTTPClientFor(e.Fence(&rest.Config{Host: "http://api", Transport: through}))
		if err != nil {
			t.Fatal(err)
		}
		try := func(want map[string]bool) {
			t.Helper()
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
				before := through[method]
				request, err := http.NewRequest(method, "http://api/x", strings.NewReader("x"))
				if err != nil {
					t.Fatal(err)
				}
				response, err := client.Do(request)
				if err == nil {
					_ = response.Body.Close()
				}
				if got := through[method] > before; got != want[method] || got != (err == nil) || !got && !errors.Is(err, ErrLeaseLost) {
					t.Errorf("%s: sent %v, want %v: %v", method, got, want[method], err)
				}
			}
		}
		reads := map[string]bool{http.MethodGet: true}
		all := map[string]bool{http.MethodGet: true, http.MethodPost: true, http.MethodPut: true, http.MethodPatch: true, http.MethodDelete: true}
		try(reads) // it does not lead yet
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		e.renewed = time.Now()
		e.working(ctx, stop)
		try(all)
		time.Sleep(15*time.Second - time.Nanosecond)
		try(all)
		if ctx.Err() != nil || e.Check() != nil {
			t.Error("the work was ended while the Lease held")
		}
		time.Sleep(time.Nanosecond)
		if e.Check() == nil {
			t.Error("that the work goes on without the Lease is not told")
		}
		try(reads)
		if ctx.Err() == nil {
			t.Error("the work was not ended")
		}
		e.idle()
		e.renewed = time.Now()
		try(reads) // another term has not begun
	})
}

// Where the machine sleeps, only the clock on the wall goes on.
func TestElapsedWhileAsleep(t *testing.T) {
	now := time.Now()
	if d := elapsed(now.Round(0).Add(-time.Hour)); d < time.Hour {
		t.Errorf("%v have passed by the wall, want an hour", d)
	}
}
