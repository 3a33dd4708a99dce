package cgroup

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"
)

// TestSettled: what was left behind by one that ended while all were looked at is
// found, one that nobody collects, or that many end, holds nothing up, and none is
// looked at twice.
func TestSettled(t *testing.T) {
	const gone, zombie = 100, 200 // from there on
	for name, test := range map[string]struct {
		lists [][]int
		want  []int
	}{
		"at once":                  {[][]int{{1, 2}}, []int{1, 2}},
		"one has forked and ended": {[][]int{{1, 100}, {1, 3}}, []int{1, 3}},
		"and the next one as well": {[][]int{{1, 100}, {1, 101}, {1, 4}}, []int{1, 4}},
		"nobody collects it":       {[][]int{{1, 200}, {1, 200}}, []int{1, 200}},
		"some always end":          {[][]int{{100}, {101}, {102}, {9, 103}}, []int{9}},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			list := func() []int { n++; return test.lists[n-1] }
			looked := map[int]bool{}
			got := settled(list, func(pid int) (process, bool) {
				if looked[pid] {
					t.Errorf("%d is looked at again", pid)
				}
				looked[pid] = true
				return process{pid: pid, zombie: pid >= zombie}, pid < gone || pid >= zombie
			})
			if pids := slices.Sorted(maps.Keys(got)); !slices.Equal(pids, test.want) || n != len(test.lists) {
				t.Errorf("%v after %d lists, want %v after %d", pids, n, test.want, len(test.lists))
			}
		})
	}
}

// at makes processes by their numbers.
func at(list ...process) map[int]process {
	all := map[int]process{}
	for _, p := range list {
		all[p.pid] = p
	}
	return all
}

func each(string) bool { return true }

// TestMembersOf: by which ties a process belongs to a path.
func TestMembersOf(t *testing.T) {
	tree := Without("a test")
	defer tree.Close()
	tree.tracked = map[string][]tracked{
		"a": {{pid: 10, ticks: 1, mark: "A"}},
		"b": {{pid: 20, ticks: 1}, {pid: 21, ticks: 1}},
		"c": {{mark: "C"}},
	}
	tree.marks = map[int]seen{1: {}, 2: {}, 13: {mark: "A"}, 30: {mark: "C"}, 31: {mark: "D"}, 40: {}}
	all := at(
		process{pid: 1, session: 1, group: 1},
		process{pid: 2}, // the kernel's
		process{pid: 10, parent: 1, session: 10, group: 10, ticks: 1, zombie: true},
		process{pid: 11, parent: 10, session: 10, group: 10},
		process{pid: 12, parent: 11, session: 12, group: 12}, // a child's of its
		process{pid: 13, parent: 1, session: 13, group: 13},  // its mark's
		process{pid: 22, parent: 1, session: 20, group: 99},
		process{pid: 23, parent: 1, session: 99, group: 21},
		process{pid: 30, parent: 1, session: 30, group: 30},
		process{pid: 31, parent: 30, session: 31, group: 31},
		process{pid: 40, parent: 41, session: 40, group: 40}, // in a circle
		process{pid: 41, parent: 40, session: 40, group: 40},
	)
	tree.marks[12], tree.marks[41] = seen{}, seen{}
	got := tree.membersOf(all, each)
	for _, pids := range got {
		slices.Sort(pids)
	}
	want := map[string][]int{"a": {11, 12, 13}, "b": {22, 23}, "c": {30, 31}}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := tree.membersOf(all, func(p string) bool { return p == "b" }); len(got) != 1 || len(got["b"]) != 2 {
		t.Errorf("of b alone: %v", got)
	}
}

// TestNumbersGivenAway: a number that a leader had is another's after it, and who
// has that one is not of the service: it must not be killed with it.
func TestNumbersGivenAway(t *testing.T) {
	tree := Without("a test")
	defer tree.Close()
	// A daemon as they come: the start command's session has gone with it.
	tree.tracked["a"] = []tracked{{pid: 10, ticks: 1}, {pid: 11, ticks: 2}}
	daemon := process{pid: 11, parent: 1, session: 11, group: 11, ticks: 2}
	members := func(list ...process) []int {
		return tree.membersOf(at(append(list, daemon)...), each)["a"]
	}
	stranger := process{pid: 10, parent: 1, session: 10, group: 10, ticks: 9}
	if got := members(stranger); !slices.Equal(got, []int{11}) {
		t.Errorf("beside one that has the number now: %v", got)
	}
	child := process{pid: 12, parent: 1, session: 10, group: 10, ticks: 9}
	if got := members(stranger, child); !slices.Equal(got, []int{11}) {
		t.Errorf("beside its child: %v", got)
	}
	tree.forgetEnded(at(daemon))
	if got := members(child); !slices.Equal(got, []int{11}) {
		t.Errorf("beside a child that it has left: %v", got)
	}
}

// TestForgetEnded: what is known of a path does not grow with its processes, and
// a mark is known as long as the path.
func TestForgetEnded(t *testing.T) {
	tree := Without("a test")
	defer tree.Close()
	tree.marks[8] = seen{}
	for pid := 10; pid < 100; pid++ {
		tree.tracked["a"] = append(tree.tracked["a"], tracked{pid: pid, mark: "A"})
		tree.forgetEnded(at(process{pid: pid, session: 5, group: 6}))
	}
	tree.forgetEnded(at(process{pid: 7}))
	if got := tree.tracked["a"]; len(got) != 1 || got[0].mark != "A" || got[0].pid != 0 {
		t.Errorf("known is %+v", got)
	}
	if len(tree.marks) != 0 {
		t.Errorf("and the marks of %v", tree.marks)
	}
}

// BenchmarkExited is what the end of one process costs, beside all that this
// machine has, with 100 services.
func BenchmarkExited(b *testing.B) {
	tree := Without("a benchmark")
	defer tree.Close()
	for i := range 100 {
		// It never runs empty.
		tree.tracked[fmt.Sprintf("%d.service", i)] = []tracked{{pid: os.Getpid(), mark: fmt.Sprint(i)}}
	}
	self, _ := readProcess(os.Getpid())
	for _, leaders := range tree.tracked {
		leaders[0].ticks = self.ticks
	}
	b.ReportAllocs()
	for b.Loop() {
		tree.Exited(0)
	}
	b.ReportMetric(float64(len(processes())), "processes")
}
