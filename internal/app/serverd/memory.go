package serverd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shrink gives back what starting needed and running does not: freed heap, and
// the pages of the program file that only its start has read (some 80 of 120
// MB). The kernel maps them again when they are used.
func shrink() error {
	debug.FreeOSMemory()
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, m := range cleanMappings(file, program) {
		// The address is no Go object's: the mapping is the program's own file.
		pages := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), m.start)), m.end-m.start)
		if err := unix.Madvise(pages, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("cannot give back the pages at %x: %w", m.start, err)
		}
	}
	return nil
}

// Garbage is collected when the heap has grown by a share, in a hundred, of
// what lives: calmGrowth, or while there is much to do up to busyGrowth, as
// long as the heap stays below a quarter of the machine's memory; and not
// before it has grown by headroom.
const (
	calmGrowth = 60
	busyGrowth = 200
	headroom   = 192 << 20
	// calm is how long a server has nothing to collect before it counts as idle.
	calm = 5 * time.Second
)

// paceCollection lets a busy server collect less often, and an idle one give
// back the memory that it took meanwhile.
func paceCollection(ctx context.Context) {
	samples := []metrics.Sample{{Name: "/gc/cycles/automatic:gc-cycles"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	machine := machineMemory()
	cycles, growth, last := samples[0].Value.Uint64(), calmGrowth, time.Now()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			metrics.Read(samples)
			busy := samples[0].Value.Uint64() != cycles
			cycles = samples[0].Value.Uint64()
			switch {
			case busy:
				last = now
				if want := growthFor(samples[1].Value.Uint64(), machine); want != growth {
					growth = want
					debug.SetGCPercent(growth)
				}
			case growth != calmGrowth && now.Sub(last) > calm:
				growth = calmGrowth
				debug.SetGCPercent(growth)
				debug.FreeOSMemory()
			}
		}
	}
}

// growthFor is the share, in a hundred, by which the heap of a busy server may
// grow on a machine with so much memory.
func growthFor(live, machine uint64) int {
	live = max(live, 1<<20)
	room := uint64(0)
	if limit := machine / 4; limit > live {
		room = limit - live
	}
	want := max(headroom, live*busyGrowth/100)
	return max(calmGrowth, int(min(want, room)*100/live))
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
