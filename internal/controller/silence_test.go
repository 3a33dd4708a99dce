package controller

import (
	"testing"
	"testing/synctest"
	"time"
)

// While the server notes nothing, no node can show that it lives: its silence
// counts from when something was refused last.
func TestSilenceWhileNothingIsNoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var refused time.Time
		n := &nodes{grace: 40 * time.Second, alive: map[string]time.Time{}, armed: map[string]bool{}, refused: func() time.Time { return refused }}
		silence := func(want time.Duration) {
			t.Helper()
			if got, _ := n.silent("n1"); got != want {
				t.Errorf("silent for %v, want %v", got, want)
			}
		}
		n.saw("n1")
		time.Sleep(39 * time.Second)
		silence(39 * time.Second)
		refused = time.Now()
		time.Sleep(10 * time.Second)
		silence(10 * time.Second)
		n.saw("n1")
		time.Sleep(time.Second)
		silence(time.Second)
	})
}
