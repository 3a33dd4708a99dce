package host

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// TestStartsAtOnce: no more than the bound are under way, the others follow in
// their order, and none is left out.
func TestStartsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3*startsAtOnce + 1
		var s starts
		var mu sync.Mutex
		var begun []int
		goOn := make(chan struct{})
		for i := range n {
			s.add(func() {
				mu.Lock()
				begun = append(begun, i)
				mu.Unlock()
				<-goOn
			})
		}
		for done := range n {
			synctest.Wait()
			if want := min(done+startsAtOnce, n); len(begun) != want {
				t.Fatalf("%d have begun when %d are done, not %d", len(begun), done, want)
			}
			goOn <- struct{}{}
		}
		synctest.Wait()
		if late := begun[startsAtOnce:]; !slices.IsSorted(late) {
			t.Errorf("begun in the order %v", late)
		}
		if s.busy != 0 || len(s.waiting) > 0 {
			t.Errorf("%d busy, %d waiting at the end", s.busy, len(s.waiting))
		}
	})
}
