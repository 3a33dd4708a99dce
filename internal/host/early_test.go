package host

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"legion.dev/legion/internal/service"
)

// Of the exits that nobody has asked for, the newest are kept, whatever is taken
// meanwhile and however often a number is used again.
func TestEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e early
		var want []Exited // the oldest first
		begin := time.Unix(1, 0)
		for n := range rapid.IntRange(0, 4*mostEarly).Draw(t, "exits") {
			pid := 2 + n
			if rapid.IntRange(0, 9).Draw(t, "again") == 0 {
				pid = 2 + rapid.IntRange(0, n).Draw(t, "pid")
			}
			x := Exited{PID: pid, StartTicks: uint64(n), Exit: service.Exit{At: begin.Add(time.Duration(n))}}
			e.put(x)
			want = append(slices.DeleteFunc(want, func(o Exited) bool { return o.PID == pid }), x)
			if len(want) > mostEarly {
				want = want[1:]
			}
			if rapid.IntRange(0, 2).Draw(t, "take") == 0 && len(want) > 0 {
				i := rapid.IntRange(0, len(want)-1).Draw(t, "which")
				delete(e.byPID, want[i].PID)
				want = slices.Delete(want, i, i+1)
			}
			if len(e.order) > 2*mostEarly {
				t.Fatalf("%d exits are noted", len(e.order))
			}
		}
		if !slices.Equal(e.all(), want) || len(e.byPID) != len(want) {
			t.Fatalf("%d exits are kept, want %d: %v, %v", len(e.byPID), len(want), e.all(), want)
		}
	})
}
