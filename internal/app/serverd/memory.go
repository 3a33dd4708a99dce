package serverd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shrink gives back what was needed and is not any more: freed heap, and the
// pages of the mapped files that nothing uses now: of the program's those that
// only its start has read (some 80 of 120 MB), of the store's all that was read
// or written since. The kernel maps them again, from its cache, when they are
// used.
func shrink(files ...string) error {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, path := range append(files, program) {
		// The kernel shows where links lead; a store elsewhere has no file here.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			continue
		}
		for _, m := range cleanMappings(bytes.NewReader(smaps), path) {
			// The address is no Go object's: the mapping is the file's.
			pages := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), m.start)), m.end-m.start)
			if err := unix.Madvise(pages, unix.MADV_DONTNEED); err != nil {
				return fmt.Errorf("cannot give back the pages at %x: %w", m.start, err)
			}
		}
	}
	return nil
}

// Garbage is collected when the heap has grown by a share, in a hundred, of
// what lives: by so much that apart passes between two collections as long as
// the server allocates as fast as it does. Never by less than calmGrowth, nor by
// more than busyGrowth or headroom, the larger of the two, and a quarter of the
// machine's memory in all.
const (
	apart      = 2 * time.Second
	calmGrowth = 25
	busyGrowth = 75
	headroom   = 160 << 20
	// A server that wants no more than fairGrowth, on the average of about as
	// long as calm, gives back what it has beyond the heap of a calm one and
	// besides, which is for all that is not heap. It costs a collection: seldom.
	fairGrowth = 75
	besides    = 96 << 20
	calm       = 2 * time.Second
	seldom     = 10 * time.Second
	// often is how often the rate of allocation is looked at.
	often = 50 * time.Millisecond
)

// paceCollection lets a busy server collect less often, and an idle one give
// back the memory that it took meanwhile.
func paceCollection(ctx context.Context, shrink func()) {
	samples := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	machine := machineMemory()
	allocated, growth := samples[0].Value.Uint64(), calmGrowth
	var shrunk time.Time
	var r rate
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(samples)
		sum, live := samples[0].Value.Uint64(), samples[1].Value.Uint64()
		r = r.after(float64(sum-allocated) / often.Seconds())
		allocated = sum
		// To set it stops the world for a moment: not for a little.
		if want := growthFor(max(r.lately, r.calmly), live, machine); want > growth || 4*want < 3*growth {
			growth = want
			debug.SetGCPercent(growth)
		}
		calmly := growthFor(r.calmly, live, machine) <= fairGrowth
		if calmly && time.Since(shrunk) > seldom && resident() > live+live*calmGrowth/100+besides {
			shrunk = time.Now()
			shrink()
		}
	}
}

// resident is how much memory this process has (proc_pid_statm(5)).
func resident() uint64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// rate is how many bytes a second are allocated: in the last moment, which says
// what is needed, and in the last seconds, which says whether a burst is over.
type rate struct{ lately, calmly float64 }

// after is the rate after one more of the times that often is long.
func (r rate) after(bytes float64) rate {
	return rate{r.lately + (bytes-r.lately)*0.3, r.calmly + (bytes-r.calmly)*often.Seconds()/calm.Seconds()}
}

// growthFor is the share, in a hundred, by which the heap of a server that
// allocates so many bytes a second may grow on a machine with so much memory.
func growthFor(rate float64, live, machine uint64) int {
	live = max(live, 1<<20)
	room := uint64(0)
	if limit := machine / 4; limit > live {
		room = limit - live
	}
	want := min(max(headroom, live*busyGrowth/100), room)
	if asked := rate * apart.Seconds(); asked < float64(want) {
		want = uint64(asked)
	}
	return max(calmGrowth, int(want*100/live))
}

// machineMemory is how much memory the machine has (sysinfo(2)).
func machineMemory() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit)
}

type mapping struct{ start, end uintptr }

// cleanMappings reads proc_pid_smaps(5) and returns the mappings of the file at
// path that are not writable and of which no page differs from the file.
func cleanMappings(smaps io.Reader, path string) []mapping {
	var found []mapping
	var current mapping
	ours := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			from, to, _ := strings.Cut(fields[0], "-")
			start, err1 := strconv.ParseUint(from, 16, 64)
			end, err2 := strconv.ParseUint(to, 16, 64)
			current = mapping{uintptr(start), uintptr(end)}
			ours = err1 == nil && err2 == nil && strings.Join(fields[5:], " ") == path && !strings.Contains(fields[1], "w")
		case ours && len(fields) >= 2 && fields[0] == "Anonymous:":
			if fields[1] == "0" {
				found = append(found, current)
			}
			ours = false
		}
	}
	return found
}
