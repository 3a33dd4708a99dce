package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

func TestSettings(t *testing.T) {
	r := &service.Limits{
		MemoryHigh: &service.Amount{Value: 1 << 20}, MemoryMax: &service.Amount{Value: 2 << 20}, MemorySwapMax: &service.Amount{Value: 1 << 20},
		TasksMax: &service.Amount{Value: 7}, CPUQuota: 2500, CPUQuotaPeriod: 50 * time.Millisecond, CPUWeight: 200, IOWeight: 50, AllowedCPUs: "0",
	}
	var got []string
	for _, s := range settings(r) {
		got = append(got, s.directive+" "+strings.Join(s.v2[:], "=")+" "+strings.Join(s.v1[:], "="))
	}
	want := []string{
		"MemoryHigh memory.high=1048576 =1048576",
		"MemoryMax memory.max=2097152 memory.limit_in_bytes=2097152",
		"MemorySwapMax memory.swap.max=1048576 memory.memsw.limit_in_bytes=3145728",
		"TasksMax pids.max=7 pids.max=7",
		"CPUQuota cpu.max=12500 50000 cpu.cfs_quota_us=12500",
		"CPUQuotaPeriodSec = cpu.cfs_period_us=50000",
		"CPUWeight cpu.weight=200 cpu.shares=2048",
		"IOWeight io.weight=default 50 blkio.bfq.weight=50",
		"AllowedCPUs cpuset.cpus=0 cpuset.cpus=0",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	for _, s := range settings(&service.Limits{MemoryMax: &service.Amount{Share: 5000}, TasksMax: &service.Amount{Value: ^uint64(0)}}) {
		if s.controller == "memory" && (s.v2[1] == "0" || s.v2[1] == "max") || s.controller == "pids" && s.v2[1] != "max" {
			t.Errorf("%+v", s)
		}
	}
}

// TestShares: a container's weight is what OCI runtimes make of it.
func TestShares(t *testing.T) {
	for shares, want := range map[uint64]string{
		2: "1 2", 102: "4 102", 1024: "39 1024", 262144: "10000 262144", 1 << 30: "10000 262144",
	} {
		list := settings(&service.Limits{CPUShares: shares, CPUWeight: 7})
		if got := list[0].v2[1] + " " + list[0].v1[1]; len(list) != 1 || got != want {
			t.Errorf("%d shares are %q, want %q", shares, got, want)
		}
	}
}

// TestLimit bounds the memory of one service and the processes of another, in
// whichever version of cgroups has the controllers.
func TestLimit(t *testing.T) {
	tree := open(t)
	until := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	run := func(path, script string, r *service.Limits) {
		t.Helper()
		dir, err := tree.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		enter, lost := tree.Limit(path, r)
		t.Cleanup(func() {
			_ = tree.Kill(path)
			until(path+" does not end", func() bool { return !tree.Populated(path) })
			if err := tree.Remove(path); err != nil {
				t.Error(err)
			}
			for _, d := range enter {
				if _, err := os.Stat(d); err == nil {
					t.Errorf("%s is left", d)
				}
			}
		})
		if len(lost) > 0 {
			t.Skip(lost)
		}
		for _, d := range enter {
			script = "echo 0 >" + d + "/cgroup.procs; " + script
		}
		spawn(t, dir, script)
	}
	marker := filepath.Join(t.TempDir(), "marker")
	run("few.service", "exec 2>"+marker+"; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done", &service.Limits{TasksMax: &service.Amount{Value: 5}})
	until("TasksMax bounds nothing", func() bool {
		said, _ := os.ReadFile(marker)
		return strings.Contains(strings.ToLower(string(said)), "fork")
	})
	run("hog.service", "exec python3 -c 'b = bytearray(64 << 20)'", &service.Limits{MemoryMax: &service.Amount{Value: 16 << 20}, CPUQuota: 5000, CPUWeight: 50})
	until("the kernel killed nothing", func() bool { return tree.OOMKills("hog.service") == 1 })
	if n := tree.OOMKills("few.service"); n != 0 {
		t.Errorf("%d killed where no memory is bounded", n)
	}
}

// TestLimitsOfTheProgramBefore: what one legiond has made in the hierarchies of
// version 1 is removed by the next.
func TestLimitsOfTheProgramBefore(t *testing.T) {
	tree := open(t)
	if _, err := tree.Create("old.service"); err != nil {
		t.Fatal(err)
	}
	enter, _ := tree.Limit("old.service", &service.Limits{CPUWeight: 50, TasksMax: &service.Amount{Value: 5}})
	if len(enter) == 0 {
		t.Skip("no controller of version 1 is there")
	}
	next, err := Open(tree.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Close)
	if err := next.Remove("old.service"); err != nil {
		t.Fatal(err)
	}
	for _, d := range enter {
		if _, err := os.Stat(filepath.Dir(d)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", filepath.Dir(d), err)
		}
	}
}
