package footprint

import (
	"runtime"
	"sync"
)

// threads is how many of them a program of Legion's has from its start on. Go's
// runtime makes another where all that there are wait in the kernel, for a disk
// above all, and ends the program where the kernel gives none: just when nothing
// else on the machine can be started either, and Legion is needed most.
const threads = 32

// ReserveThreads makes threads, which the runtime keeps for later.
func ReserveThreads() {
	var made, gone sync.WaitGroup
	over := make(chan struct{})
	for range threads {
		made.Add(1)
		gone.Go(func() {
			runtime.LockOSThread() // each of these goroutines has one of its own
			defer runtime.UnlockOSThread()
			made.Done()
			<-over
		})
	}
	made.Wait()
	close(over)
	gone.Wait()
}
