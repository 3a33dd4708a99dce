package host

import "sync"

// startsAtOnce bounds how many starts are under way beside the loop. Each holds
// a thread while it waits for a disk.
const startsAtOnce = 16

// starts are those that the loop has asked for, carried out in this order. Who
// has done one goes on to the next, so that a thousand at once need no thousand
// stacks.
type starts struct {
	mu      sync.Mutex
	waiting []func()
	busy    int
}

func (s *starts) add(start func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == startsAtOnce {
		s.waiting = append(s.waiting, start)
		return
	}
	s.busy++
	go s.work(start)
}

func (s *starts) work(start func()) {
	for start != nil {
		start()
		start = s.next()
	}
}

// next is nil where nothing waits; who asked ends then.
func (s *starts) next() func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.waiting = nil
		s.busy--
		return nil
	}
	start := s.waiting[0]
	s.waiting[0], s.waiting = nil, s.waiting[1:]
	return start
}
