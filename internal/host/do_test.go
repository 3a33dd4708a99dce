package host

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestGivenUp: what a client that has left had asked for is not done later on,
// when it writes to what nobody keeps for it any more; what has begun is done.
func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake().host(t)
		defer f.leave()
		busy, begun := make(chan struct{}), make(chan struct{})
		first, leaveFirst := context.WithCancel(context.Background())
		second, leaveSecond := context.WithCancel(context.Background())
		firstDone, secondDone := 0, 0
		results := make(chan error, 1)
		go func() {
			results <- f.h.do(first, func() { close(begun); <-busy; firstDone++ })
		}()
		<-begun
		given := make(chan error, 1)
		go func() { given <- f.h.do(second, func() { secondDone++ }) }()
		synctest.Wait()
		leaveFirst()
		leaveSecond()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("who has left hears %v", err)
		}
		secondDone = 10 // which the race detector watches
		close(busy)
		if err := <-results; err != nil || firstDone != 1 {
			t.Errorf("what had begun: %v, done %d times", err, firstDone)
		}
		synctest.Wait()
		if secondDone != 10 {
			t.Errorf("it was done all the same")
		}
	})
}
