package serverd

import (
	"slices"
	"strings"
	"testing"
)

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-00500000 r-xp 00000000 fe:00 10                          /bin/legion-server
Rss:                 500 kB
Anonymous:             0 kB
00500000-00600000 r--p 00100000 fe:00 10                          /bin/legion-server
Anonymous:             4 kB
00600000-00700000 rw-p 00200000 fe:00 10                          /bin/legion-server
Anonymous:             0 kB
00700000-00800000 r--p 00000000 fe:00 11                          /lib/other
Anonymous:             0 kB
00800000-00900000 r--p 00000000 00:00 0
Anonymous:             0 kB
00900000-00a00000 r--p 00300000 fe:00 10                          /bin/legion-server
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0x500000}, {0x900000, 0xa00000}}
	if got := cleanMappings(strings.NewReader(smaps), "/bin/legion-server"); !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestShrinkKeepsTheProgramRunning(t *testing.T) {
	for range 3 {
		if err := shrink(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGrowth(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		rate          float64
		live, machine uint64
		want          int
	}{
		{0, 200 * mib, 16384 * mib, calmGrowth},
		{20 * mib, 200 * mib, 16384 * mib, calmGrowth},
		{75 * mib, 200 * mib, 16384 * mib, busyGrowth},
		{1000 * mib, 0, 16384 * mib, 16000},
		{1000 * mib, 64 * mib, 16384 * mib, 250},
		{1000 * mib, 512 * mib, 16384 * mib, busyGrowth},
		{1000 * mib, 512 * mib, 3072 * mib, 50},
		{1000 * mib, 512 * mib, 1024 * mib, calmGrowth},
		{1000 * mib, 64 * mib, 0, calmGrowth},
	} {
		if got := growthFor(c.rate, c.live, c.machine); got != c.want {
			t.Errorf("%.0f bytes a second: %d live bytes on a machine of %d may grow by %d %%, want %d", c.rate, c.live, c.machine, got, c.want)
		}
	}
}

// A burst is answered at once, and is over when it has been for a while; what
// happens once in a while at rest is none.
func TestRate(t *testing.T) {
	const mib = 1 << 20
	var r rate
	step := func(times int, bytes float64) {
		for range times {
			r = r.after(bytes)
		}
	}
	within := func(what string, got, low, high float64) {
		t.Helper()
		if got < low || got > high {
			t.Errorf("%s: %.0f MiB/s, want %.0f to %.0f", what, got/mib, low/mib, high/mib)
		}
	}
	step(3, 400*mib)
	within("lately, at the beginning", r.lately, 200*mib, 400*mib)
	within("calmly, at the beginning", r.calmly, 10*mib, 60*mib)
	step(100, 400*mib)
	within("calmly, in the burst", r.calmly, 350*mib, 400*mib)
	step(20, 20*mib)
	within("lately, after a second", r.lately, 19*mib, 25*mib)
	within("calmly, after a second", r.calmly, 150*mib, 300*mib)
	step(100, 20*mib)
	within("calmly, after six", r.calmly, 20*mib, 60*mib)
	step(1, 200*mib)
	within("calmly, after a moment of work", r.calmly, 20*mib, 60*mib)
}

func TestResident(t *testing.T) {
	// A test's program has more than a megabyte, and less than there is.
	if got := resident(); got < 1<<20 || got > machineMemory() {
		t.Errorf("%d bytes are resident", got)
	}
}
