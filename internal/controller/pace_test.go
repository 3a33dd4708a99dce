package controller

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// busyServer answers in its own time: quick while no more than so many ask at
// once, then slower, and beyond a limit not at all.
type busyServer struct {
	mu                 sync.Mutex
	now, most, refused int
	quick              time.Duration
	comfort, limit     int
}

func (s *busyServer) write() bool {
	s.mu.Lock()
	s.now++
	s.most = max(s.most, s.now)
	took := s.quick
	if s.now > s.comfort {
		took = s.quick * time.Duration(s.now*s.now) / time.Duration(s.comfort*s.comfort)
	}
	refuse := s.now > s.limit
	if refuse {
		s.refused++
	}
	s.mu.Unlock()
	if !refuse {
		time.Sleep(took)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	return refuse
}

func (s *busyServer) take(g *gate, n int) time.Duration {
	began := time.Now()
	var wg sync.WaitGroup
	for range n {
		wg.Add(1)
		g.do(context.Background(), func() bool {
			defer wg.Done()
			return s.write()
		})
	}
	wg.Wait()
	synctest.Wait()
	return time.Since(began)
}

func TestPaceOfAQuickServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(256)
		s := &busyServer{quick: time.Millisecond, comfort: 1000, limit: 1000}
		took := s.take(g, 5000)
		if s.most != 256 {
			t.Errorf("%d writes at a time, want the most that is allowed", s.most)
		}
		if took > 40*time.Millisecond {
			t.Errorf("5,000 writes of a millisecond took %s", took)
		}
	})
}

func TestPaceOfASlowServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(256)
		s := &busyServer{quick: 20 * time.Millisecond, comfort: 20, limit: 1000}
		s.take(g, 20000)
		// Eight times as slow as the quickest is 20 * √8 at a time.
		if now := g.pace.allowed(); now < 20 || now > 80 {
			t.Errorf("%d writes at a time; the server is at ease with 20 and too slow with 57", now)
		}
	})
}

func TestPaceOfAServerThatRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(256)
		s := &busyServer{quick: time.Millisecond, comfort: 1000, limit: 40}
		s.take(g, 20000)
		if now := g.pace.allowed(); now < 15 || now > 45 {
			t.Errorf("%d writes at a time where more than 40 are refused", now)
		}
		if s.refused > 2000 {
			t.Errorf("%d of 20,000 writes were refused", s.refused)
		}
		// It takes everything again.
		s.limit = 1000
		s.take(g, 100000)
		if now := g.pace.allowed(); now < 200 {
			t.Errorf("%d writes at a time long after the server has recovered", now)
		}
	})
}

// One burst of refusals is one reason to slow down, not one for each.
func TestPaceCountsABurstOnce(t *testing.T) {
	began := time.Unix(0, 0)
	p := newPace(256)
	p.window = 128
	for range 128 {
		p = p.after(began, began.Add(time.Second), true)
	}
	if p.allowed() != 64 {
		t.Errorf("%d writes at a time after one burst, want half of 128", p.allowed())
	}
	for i := range 100 {
		p = p.after(began.Add(time.Duration(i+2)*time.Second), began.Add(time.Duration(i+3)*time.Second), true)
	}
	if p.allowed() != 1 {
		t.Errorf("%d writes at a time where all is refused, want one", p.allowed())
	}
}

func TestGateLetsGoAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := newGate(1)
		hold := make(chan struct{})
		g.do(ctx, func() bool { <-hold; return false })
		ran := false
		g.do(ctx, func() bool { ran = true; return false })
		cancel()
		close(hold)
		synctest.Wait()
		if ran || g.flying != 0 || len(g.waiting) != 0 {
			t.Errorf("after the end: ran %v, %d under way, %d waiting", ran, g.flying, len(g.waiting))
		}
	})
}

func TestTooMuch(t *testing.T) {
	for _, err := range []error{
		apierrors.NewTooManyRequests("slow down", 1), apierrors.NewServiceUnavailable("not now"),
		apierrors.NewTimeoutError("late", 1), context.DeadlineExceeded,
	} {
		if !tooMuch(err) {
			t.Errorf("%v is not taken as a request for less", err)
		}
	}
	for _, err := range []error{nil, errors.New("other"), apierrors.NewBadRequest("wrong")} {
		if tooMuch(err) {
			t.Errorf("%v is taken as a request for less", err)
		}
	}
}
