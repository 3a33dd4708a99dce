package controller

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
)

// slow is a server that answers when it is told to.
type slow struct{ began, answer chan struct{} }

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	close(s.began)
	select {
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-s.answer:
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
	}
}

// elections are two processes of which the first leads, in the middle of a write
// while it is told to end.
type elections struct {
	server        slow
	end           context.CancelFunc
	wrote         chan error
	first, second chan struct{} // the first one ended, the second one leads
	since         time.Time
}

func hold(t *testing.T) *elections {
	ctx, end := context.WithCancel(t.Context())
	h := &elections{
		server: slow{make(chan struct{}), make(chan struct{})}, end: end,
		wrote: make(chan error, 1), first: make(chan struct{}), second: make(chan struct{}),
	}
	var leases kubernetes.Interface = fake.NewClientset()
	log := slog.New(slog.DiscardHandler)
	a, b := &Election{Identity: "a", Log: log}, &Election{Identity: "b", Log: log}
	client, err := rest.HTTPClientFor(a.Fence(&rest.Config{Host: "http://api", Transport: h.server}))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(h.first)
		_ = a.Lead(ctx, leases, func(ctx context.Context) error {
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api/x", strings.NewReader("x"))
			if err != nil {
				return err
			}
			response, err := client.Do(request)
			if err == nil {
				err = response.Body.Close()
			}
			h.wrote <- err
			<-ctx.Done()
			return nil
		})
	}()
	<-h.server.began
	go func() {
		_ = b.Lead(t.Context(), leases, func(ctx context.Context) error {
			close(h.second)
			<-ctx.Done()
			return nil
		})
	}()
	// The second one has looked, and waits for the Lease.
	time.Sleep(20 * time.Second)
	h.since = time.Now()
	end()
	synctest.Wait()
	return h
}

func (h *elections) secondLeads() bool {
	synctest.Wait()
	select {
	case <-h.second:
		return true
	default:
		return false
	}
}

// A write that is under way when the end is asked for is waited for: then the
// Lease is given up, and who waits for it leads at once.
func TestGivenUpAfterTheLastWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		time.Sleep(time.Second)
		if h.secondLeads() {
			t.Fatal("another one leads while a write is under way")
		}
		close(h.server.answer)
		if err := <-h.wrote; err != nil {
			t.Errorf("the last write: %v", err)
		}
		<-h.first
		<-h.second
		if took := time.Since(h.since); took > time.Second+10*time.Millisecond {
			t.Errorf("the other one leads after %v, want at once after the write of a second", took)
		}
	})
}

// One that is never answered is cut off, and may be carried out yet: the Lease
// ends by itself.
func TestKeptAfterAWriteWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := hold(t)
		if err := <-h.wrote; err == nil {
			t.Error("a write that was not answered counts as done")
		}
		if took := time.Since(h.since); took > 5*time.Second {
			t.Errorf("it was waited for for %v", took)
		}
		<-h.first
		<-h.second
		if took := time.Since(h.since); took < 10*time.Second {
			t.Errorf("the other one leads %v after the stop, before the Lease has ended", took)
		}
	})
}
