package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"legion.dev/legion/internal/service"
)

// unlimited is what the files of settings hold where nothing is set.
var unlimited = map[string]string{
	"memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.max": "max", "memory.swap.max": "max",
	"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1", "pids.max": "max",
	"cpu.max": "max", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpu.weight": "100", "cpu.shares": "1024", "cpu.idle": "0",
	"io.weight": "default 100", "blkio.bfq.weight": "100", "cpuset.cpus": "", "cpuset.mems": "",
}

// Relimit changes what the processes of a path may use while they run. lost is
// as of Limit; a memory limit below what they need is refused, in version 1 by the
// kernel, which in version 2 would end one of them.
func (t *Tree) Relimit(path string, old, limits *service.Limits) (lost []string) {
	if t.root == "" {
		return nil
	}
	if old != nil {
		t.lift(path, old, cmp.Or(limits, &service.Limits{}))
	}
	limits, refused := t.enough(path, limits)
	enter, lost := t.Limit(path, limits)
	lost = append(refused, lost...)
	pids, err := t.Pids(path)
	if err != nil {
		return append(lost, err.Error())
	}
	for _, dir := range enter {
		inside, err := within(dir)
		if err != nil {
			lost = append(lost, err.Error())
		}
		for _, pid := range pids {
			if slices.Contains(inside, pid) {
				continue // it may be in one below, as in a container
			}
			// What has ended meanwhile need not be moved.
			if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); ignoreGone(err) != nil {
				lost = append(lost, err.Error())
			}
		}
	}
	return lost
}

// enough leaves out a memory limit of version 2 below what a path needs.
func (t *Tree) enough(path string, limits *service.Limits) (*service.Limits, []string) {
	dir := t.Dir(path)
	if limits == nil || limits.MemoryMax == nil || !has(dir, "memory") {
		return limits, nil
	}
	used, err := UsageOf(dir)
	if most := amount(limits.MemoryMax, totalMemory); err != nil || uint64(used.Memory) <= most {
		return limits, nil
	}
	left := *limits
	left.MemoryMax, left.MemorySwapMax = nil, nil
	return &left, []string{fmt.Sprintf("MemoryMax=: %d bytes are in use, more than that", used.Memory)}
}

// lift undoes the settings that are not made any more.
func (t *Tree) lift(path string, old, limits *service.Limits) {
	kept := settings(limits)
	// In version 1, memory and swap together may never be less than memory.
	for _, s := range slices.Backward(settings(old)) {
		if slices.ContainsFunc(kept, func(k setting) bool { return k.directive == s.directive }) {
			continue
		}
		if v, ok := unlimited[s.v2[0]]; ok && t.write2(path, s.v2[0], v) {
			continue
		}
		if root, err := t.root1(strings.Replace(s.controller, "io", "blkio", 1)); err == nil && s.v1[0] != "" {
			dir := filepath.Join(root, strings.TrimPrefix(t.Dir(path), t.root))
			_ = os.WriteFile(filepath.Join(dir, s.v1[0]), []byte(unlimited[s.v1[0]]), 0)
		}
	}
}

// write2 reports whether the file of version 2 is there.
func (t *Tree) write2(path, file, value string) bool {
	full := filepath.Join(t.Dir(path), file)
	if _, err := os.Stat(full); err != nil {
		return false
	}
	_ = os.WriteFile(full, []byte(value), 0)
	return true
}

// Freeze suspends every process of a path, or lets them go on. What the kernel
// has not got to yet it does without being asked again.
func (t *Tree) Freeze(path string, frozen bool) error {
	if t.root == "" {
		return errors.New("there are no cgroups of version 2")
	}
	err := os.WriteFile(filepath.Join(t.Dir(path), "cgroup.freeze"), []byte(map[bool]string{true: "1", false: "0"}[frozen]), 0)
	if errors.Is(err, os.ErrNotExist) && t.exists(path) {
		return errors.New("the kernel cannot freeze a cgroup")
	}
	return err
}

// Move puts a process that runs into the cgroup of a path, which must be there.
// Without cgroups there is nowhere to put it.
func (t *Tree) Move(path string, pid int) error {
	if t.root == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(t.Dir(path), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}
