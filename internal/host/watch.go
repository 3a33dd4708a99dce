package host

import (
	"context"
	"sync"

	"legion.dev/legion/internal/hostapi"
)

// watcher holds what one client has not taken yet: of each group the newest
// only, so that a slow client costs no more than the groups there are.
type watcher struct {
	mu      sync.Mutex
	order   []string
	pending map[string]hostapi.Event
	wake    chan struct{}
	closed  bool
}

// synced is the place of the Synced event among the names of groups.
const synced = "\x00synced"

func (w *watcher) add(ev hostapi.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := ev.Name
	if ev.Type == hostapi.Synced {
		key = synced
	}
	if _, ok := w.pending[key]; !ok {
		w.order = append(w.order, key)
	}
	w.pending[key] = ev
	w.signal()
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) take() (events []hostapi.Event, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range w.order {
		events = append(events, w.pending[key])
	}
	w.order = w.order[:0]
	clear(w.pending)
	return events, w.closed
}

// Watch calls send for each event until ctx ends, send fails, or legiond ends.
// It begins with the groups there are, then Synced.
func (h *Host) Watch(ctx context.Context, send func([]hostapi.Event) error) error {
	w := &watcher{pending: map[string]hostapi.Event{}, wake: make(chan struct{}, 1)}
	err := h.do(ctx, func() {
		for _, g := range h.inOrder() {
			wire := h.wire(g)
			w.add(hostapi.Event{Type: hostapi.Changed, Name: g.spec.Name, Group: &wire})
		}
		w.add(hostapi.Event{Type: hostapi.Synced})
		h.watchers[w] = struct{}{}
	})
	if err != nil {
		return err
	}
	defer h.later(func() { delete(h.watchers, w) })
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return nil
		}
		events, closed := w.take()
		if len(events) > 0 {
			if err := send(events); err != nil {
				return err
			}
		}
		if closed {
			return nil
		}
	}
}

func (h *Host) publish(ev hostapi.Event) {
	for w := range h.watchers {
		w.add(ev)
	}
}

func (h *Host) closeWatchers() {
	for w := range h.watchers {
		w.mu.Lock()
		w.closed = true
		w.signal()
		w.mu.Unlock()
	}
}
