package runner

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStartTicksAreTheKernels: what is worked out from the time of the fork is
// what /proc tells.
func TestStartTicksAreTheKernels(t *testing.T) {
	for range 30 {
		p := start(t, shell("exec sleep 1000"))
		if told, err := StartTicks(p.PID); err != nil || told != p.StartTicks {
			t.Errorf("process %d: %d, and /proc says %d, %v", p.PID, p.StartTicks, told, err)
		}
		if err := p.Signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		exitOfPID(t, p.PID)
	}
	if n := shared.ticks.alike.Load(); n < 0 {
		t.Errorf("the kernel counts in another way: %d", n)
	}
}

func TestTicksOfAnotherKernel(t *testing.T) {
	told, err := StartTicks(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	agree, not := span{told, told}, span{told + 1, told + 1}
	for _, c := range []struct {
		before []span
		want   uint64 // of not
	}{
		{nil, told},
		{[]span{agree, agree}, told},
		{[]span{agree, agree, agree}, told + 1},
		{[]span{not, agree, agree, agree}, told},
		{[]span{{told - 1, told}, {told - 1, told}, {told, told + 1}}, told},
	} {
		var k ticks
		for _, s := range append(c.before, not) {
			if told, err = k.of(os.Getpid(), s); err != nil {
				t.Fatal(err)
			}
		}
		if told != c.want {
			t.Errorf("after %v: %d, not %d", c.before, told, c.want)
		}
	}
}
