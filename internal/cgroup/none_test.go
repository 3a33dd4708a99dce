package cgroup

import (
	"maps"
	"slices"
	"testing"
)

// TestSettled: what was left behind by one that ended while all were looked at is
// found, and one that nobody collects, or that many end, holds nothing up.
func TestSettled(t *testing.T) {
	type seen struct {
		there []int
		over  []int
	}
	for name, test := range map[string]struct {
		looks []seen
		want  []int
	}{
		"at once":                  {[]seen{{[]int{1, 2}, nil}}, []int{1, 2}},
		"one has forked and ended": {[]seen{{[]int{1}, []int{2}}, {[]int{1, 3}, nil}}, []int{1, 3}},
		"and the next one as well": {[]seen{{[]int{1}, []int{2}}, {[]int{1}, []int{3}}, {[]int{1, 4}, nil}}, []int{1, 4}},
		"nobody collects it":       {[]seen{{[]int{1, 2}, []int{2}}, {[]int{1, 2}, []int{2}}}, []int{1, 2}},
		"some always end":          {[]seen{{nil, []int{2}}, {nil, []int{3}}, {nil, []int{4}}, {[]int{9}, []int{5}}}, []int{9}},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			got := settled(func() (map[int]process, []int) {
				l := test.looks[n]
				n++
				all := map[int]process{}
				for _, pid := range l.there {
					all[pid] = process{pid: pid}
				}
				return all, l.over
			})
			if pids := slices.Sorted(maps.Keys(got)); !slices.Equal(pids, test.want) || n != len(test.looks) {
				t.Errorf("%v after %d looks, want %v after %d", pids, n, test.want, len(test.looks))
			}
		})
	}
}
