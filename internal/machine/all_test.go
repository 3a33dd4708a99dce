package machine

import (
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

// TestCallsAll: after an end that calls for all of the group it rests once the
// delay is over, and begins no life by itself; a request takes the call back.
func TestCallsAll(t *testing.T) {
	s := service.Service{Restart: service.Restart{
		Mode: service.RestartAlways, All: service.ExitSet{Codes: []int{0, 42}}, Backoff: &service.Backoff{Initial: 10 * time.Second, Max: 30 * time.Second},
	}}
	for code, rest := range map[int]service.State{42: service.Failed, 0: service.Dead} {
		p := play(t, s).start().up().main(service.Exit{Code: code})
		if p.in.State != rest || !p.in.CallsAll(&s) || p.in.Restarts != 0 {
			t.Errorf("after %d it is %s, %d restarts, and calls: %v", code, p.in.State, p.in.Restarts, p.in.CallsAll(&s))
		}
		if p.give("again", Event{Kind: StartAsked, KeepCount: true}); p.in.CallsAll(&s) || p.in.Restarts != 1 {
			t.Errorf("in its next life: %+v", p.in)
		}
		p.up().main(service.Exit{Code: code})
		if p.in.State != service.AutoRestart || p.in.CallsAll(&s) {
			t.Errorf("the second time it is %s, and calls: %v", p.in.State, p.in.CallsAll(&s))
		}
		if p.wait(); p.in.State != rest || !p.in.CallsAll(&s) {
			t.Errorf("after the back-off it is %s, and calls: %v", p.in.State, p.in.CallsAll(&s))
		}
		if p.stop(); p.in.CallsAll(&s) {
			t.Error("it calls, and is to stop")
		}
	}
	if p := play(t, s).start().up().main(service.Exit{Code: 1}); p.in.State != service.Start || p.in.CallsAll(&s) {
		t.Errorf("after another end it is %s", p.in.State)
	}
}
