package hostd

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"

	"legion.dev/legion/internal/footprint"
)

// small keeps legiond's memory small: it has little to collect and little to
// compute, and must leave the machine to the services.
func small() {
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	busy()
	debug.SetMemoryLimit(64 << 20)
}

// busy lets what comes make much garbage, as the start does; trimNowAndThen ends
// it.
func busy() { debug.SetGCPercent(200) }

// trimEvery is how often memory is given back; the first time it is what only
// the start needed, later what only requests did.
const trimEvery = 30 * time.Second

func trimNowAndThen(ctx context.Context) {
	next := time.NewTimer(3 * time.Second)
	defer next.Stop()
	for {
		select {
		case <-next.C:
			debug.SetGCPercent(30)
			footprint.Trim()
			next.Reset(trimEvery)
		case <-ctx.Done():
			return
		}
	}
}
