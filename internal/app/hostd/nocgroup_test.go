package hostd

import (
	"testing"

	"legion.dev/legion/internal/service"
)

// TestWithoutCgroups: the children of daemons that outlived legiond belong to
// PID 1, which tells nobody of their end; their end is seen all the same, and
// the service has not failed.
func TestWithoutCgroups(t *testing.T) {
	t.Setenv("LEGION_TEST_CGROUP", "none")
	d := newDaemon(t, map[string]string{
		"family.service":  "[Service]\nExecStart=/bin/sh -c 'sleep 1000 & sh -c \"sleep 1000 & wait\" & wait'\n",
		"slow.service":    "[Service]\nExecStart=/bin/sh -c '(trap \"sleep 0.3; exit\" TERM; sleep 1000 & wait) & exec sleep 1000'\n",
		"forking.service": "[Service]\nType=forking\nGuessMainPID=no\nExecStart=/bin/sh -c 'setsid sleep 1000 & setsid sleep 1000 & exit 0'\n",
	})
	names := []string{"family.service", "slow.service", "forking.service"}
	for _, crash := range []bool{false, true} {
		for _, name := range names {
			d.must(name, "start")
		}
		if crash {
			d.crash()
			d.start()
		}
		for _, name := range names {
			d.running(name)
			d.must(name, "stop")
			// What does not see the end waits for TimeoutStopSec= and fails.
			if s := d.until(name, func(s service.Status) bool { return !s.State.Alive() }); s.State != service.Dead {
				t.Errorf("%s (crash: %v) is %s: %s", name, crash, s.State, s.Reason)
			}
		}
	}
}

// TestTwoWithoutCgroups: a legiond that takes over what an earlier one has left
// leaves alone what another one runs under the same name.
func TestTwoWithoutCgroups(t *testing.T) {
	t.Setenv("LEGION_TEST_CGROUP", "none")
	units := map[string]string{"same.service": "[Service]\nRestart=always\nExecStart=/bin/sleep 1000\n"}
	one, other := newDaemon(t, units), newDaemon(t, units)
	one.must("same.service", "start")
	other.must("same.service", "start")
	before := other.running("same.service").Main
	one.crash()
	one.start()
	one.must("same.service", "stop")
	if now := other.running("same.service").Main; now.PID != before.PID || now.Number != before.Number {
		t.Errorf("the other one's was %+v and is %+v", before, now)
	}
}
