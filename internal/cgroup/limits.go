package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// setting is one file of a controller to write.
type setting struct {
	directive, controller string
	// v2 and v1 are the file and what to write; an empty file is none.
	v2, v1 [2]string
}

// settings translates resources into the files of both versions (the kernel's
// admin-guide/cgroup-v2 and cgroup-v1).
func settings(r *service.Limits) []setting {
	var out []setting
	add := func(directive, controller string, v2, v1 [2]string) {
		out = append(out, setting{directive, controller, v2, v1})
	}
	memory := func(name, v2, v1 string, a *service.Amount) {
		if a == nil {
			return
		}
		n := amount(a, totalMemory)
		add(name, "memory", [2]string{v2, orWord(n, "max")}, [2]string{v1, orWord(n, "-1")})
	}
	memory("MemoryMin", "memory.min", "", r.MemoryMin)
	memory("MemoryLow", "memory.low", "", r.MemoryLow)
	memory("MemoryHigh", "memory.high", "", r.MemoryHigh)
	memory("MemoryMax", "memory.max", "memory.limit_in_bytes", r.MemoryMax)
	if s := r.MemorySwapMax; s != nil {
		n := amount(s, totalMemory)
		both := n
		if m := r.MemoryMax; m != nil && n != math.MaxUint64 {
			both = amount(m, totalMemory) + n
		}
		add("MemorySwapMax", "memory", [2]string{"memory.swap.max", orWord(n, "max")}, [2]string{"memory.memsw.limit_in_bytes", orWord(both, "-1")})
	}
	if r.TasksMax != nil {
		n := orWord(amount(r.TasksMax, totalTasks), "max")
		add("TasksMax", "pids", [2]string{"pids.max", n}, [2]string{"pids.max", n})
	}
	if r.CPUQuota > 0 {
		period := uint64(100_000)
		if r.CPUQuotaPeriod > 0 {
			period = uint64(min(max(r.CPUQuotaPeriod, time.Millisecond), time.Second).Microseconds())
		}
		quota := max(r.CPUQuota*period/10000, 1000)
		add("CPUQuota", "cpu", [2]string{"cpu.max", fmt.Sprintf("%d %d", quota, period)}, [2]string{"cpu.cfs_quota_us", strconv.FormatUint(quota, 10)})
		if period != 100_000 {
			add("CPUQuotaPeriodSec", "cpu", [2]string{}, [2]string{"cpu.cfs_period_us", strconv.FormatUint(period, 10)})
		}
	}
	if r.CPUShares > 0 {
		// The conversion of OCI runtimes, from 2..262144 to 1..10000.
		shares := min(max(r.CPUShares, 2), 262144)
		add("CPUShares", "cpu", [2]string{"cpu.weight", strconv.FormatUint(1+(shares-2)*9999/262142, 10)},
			[2]string{"cpu.shares", strconv.FormatUint(shares, 10)})
	} else if r.CPUWeight > 0 {
		add("CPUWeight", "cpu", [2]string{"cpu.weight", strconv.FormatUint(r.CPUWeight, 10)},
			[2]string{"cpu.shares", strconv.FormatUint(max(r.CPUWeight*1024/100, 2), 10)})
	}
	if r.CPUIdle {
		add("CPUWeight=idle", "cpu", [2]string{"cpu.idle", "1"}, [2]string{"cpu.idle", "1"})
	}
	if r.IOWeight > 0 {
		add("IOWeight", "io", [2]string{"io.weight", "default " + strconv.FormatUint(r.IOWeight, 10)},
			[2]string{"blkio.bfq.weight", strconv.FormatUint(min(max(r.IOWeight, 1), 1000), 10)})
	}
	if r.AllowedCPUs != "" {
		add("AllowedCPUs", "cpuset", [2]string{"cpuset.cpus", r.AllowedCPUs}, [2]string{"cpuset.cpus", r.AllowedCPUs})
	}
	if r.AllowedMemoryNodes != "" {
		add("AllowedMemoryNodes", "cpuset", [2]string{"cpuset.mems", r.AllowedMemoryNodes}, [2]string{"cpuset.mems", r.AllowedMemoryNodes})
	}
	return out
}

func orWord(n uint64, word string) string {
	if n == math.MaxUint64 {
		return word
	}
	return strconv.FormatUint(n, 10)
}

func amount(a *service.Amount, total func() uint64) uint64 {
	if a.Share > 0 {
		return total() / 10000 * a.Share
	}
	return a.Value
}

func totalMemory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 0
	}
	return info.Totalram * uint64(info.Unit)
}

func totalTasks() uint64 {
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return math.MaxUint64
	}
	return n
}

// Limit bounds what the processes of a path may use. Controllers of version 2
// are used where they are, else those of version 1: then enter are the
// directories that each process of the path has to be put into as well. lost
// names what this machine cannot limit.
func (t *Tree) Limit(path string, r *service.Limits) (enter, lost []string) {
	if r == nil {
		return nil, nil
	}
	if t.root == "" {
		return nil, nil // Lost says so, of every service
	}
	t.mu.Lock()
	t.limited = true
	t.mu.Unlock()
	failed := settings(r)
	// In version 1 the order of two settings depends on whether they are raised or
	// lowered: what fails may succeed after the others.
	for range 2 {
		list := failed
		failed, lost = nil, nil
		for _, s := range list {
			dir, err := t.set(path, s)
			switch {
			case err != nil:
				failed, lost = append(failed, s), append(lost, fmt.Sprintf("%s=: %v", s.directive, err))
			case dir != "" && !slices.Contains(enter, dir):
				enter = append(enter, dir)
			}
		}
	}
	return enter, lost
}

// set writes a setting; of version 1 it gives the directory.
func (t *Tree) set(path string, s setting) (string, error) {
	err := t.set2(path, s)
	if err == nil {
		return "", nil
	}
	dir, err1 := t.set1(path, s)
	if errors.Is(err1, errNoController) {
		return "", err
	}
	return dir, err1
}

var errNoController = errors.New("the kernel has no such controller here")

// set2 writes a setting of version 2.
func (t *Tree) set2(path string, s setting) error {
	if s.v2[0] == "" {
		return errNoController
	}
	dir := t.Dir(path)
	if err := enable(dir, s.controller, filepath.Dir(t.root)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, s.v2[0]), []byte(s.v2[1]), 0)
}

// enable has the controller in dir: each cgroup above it, from top on, passes
// it on.
func enable(dir, controller, top string) error {
	if has(dir, controller) {
		return nil
	}
	if dir == top || len(dir) <= len(top) {
		return fmt.Errorf("the controller %q is not given to %s", controller, top)
	}
	parent := filepath.Dir(dir)
	if err := enable(parent, controller, top); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s has processes itself, so it cannot pass the controller %q on; start legiond in a cgroup of its own below", parent, controller)
	}
	return err
}

func has(dir, controller string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(data)), controller)
}

// set1 writes a setting of version 1 and gives the directory.
func (t *Tree) set1(path string, s setting) (string, error) {
	if s.v1[0] == "" {
		return "", errNoController
	}
	controller := s.controller
	if controller == "io" {
		controller = "blkio"
	}
	root, err := t.root1(controller)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, strings.TrimPrefix(t.Dir(path), t.root))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if controller == "cpuset" {
		// What is not set in a cpuset of version 1 is empty, not everything.
		for d := root; ; d = filepath.Join(d, firstPart(dir, d)) {
			inherit(d)
			if d == dir {
				break
			}
		}
	}
	file := filepath.Join(dir, s.v1[0])
	if _, err := os.Stat(file); err != nil {
		return "", errNoController
	}
	return dir, os.WriteFile(file, []byte(s.v1[1]), 0)
}

// firstPart is the next name on the way from above down to dir.
func firstPart(dir, above string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(dir, above), "/"), "/")
	return name
}

func inherit(dir string) {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil || strings.TrimSpace(string(own)) != "" {
			continue
		}
		if above, err := os.ReadFile(filepath.Join(filepath.Dir(dir), f)); err == nil {
			_ = os.WriteFile(filepath.Join(dir, f), above, 0) // the kernel tells of it at the next write
		}
	}
}

// root1 is the tree's directory in the hierarchy of a controller of version 1,
// below this process's own cgroup.
func (t *Tree) root1(controller string) (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return t.under1(string(mounts), string(own), controller)
}

func (t *Tree) under1(mountinfo, own, controller string) (string, error) {
	dir, err := own1(mountinfo, own, controller)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(t.root)), nil
}

// own1 is the directory of this process's own cgroup in the hierarchy of a
// controller of version 1.
func own1(mountinfo, own, controller string) (string, error) {
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) < 3 || kind[0] != "cgroup" || !slices.Contains(strings.Split(kind[2], ","), controller) {
			continue
		}
		path := "/"
		for l := range strings.Lines(own) {
			parts := strings.SplitN(strings.TrimSpace(l), ":", 3)
			if len(parts) == 3 && slices.Contains(strings.Split(parts[1], ","), controller) {
				path = parts[2]
			}
		}
		if rel, err := filepath.Rel(unescape(fields[3]), path); err == nil && filepath.IsLocal(rel) {
			path = rel
		}
		return filepath.Join(unescape(fields[4]), path), nil
	}
	return "", errNoController
}

// v1Controllers are those that Limit may have made directories of.
var v1Controllers = []string{"memory", "pids", "cpu", "cpuset", "blkio"}

// has1 says that the tree has a directory in the hierarchy of a controller of
// version 1.
func (t *Tree) has1(controller string) bool {
	root, err := t.root1(controller)
	return err == nil && unix.Access(root, unix.F_OK) == nil
}

// unlimit removes what Limit has made for a path in the hierarchies of version
// 1. What still has processes stays.
func (t *Tree) unlimit(path string) {
	t.mu.Lock()
	limited := t.limited
	t.mu.Unlock()
	if !limited {
		return
	}
	for _, c := range v1Controllers {
		root, err := t.root1(c)
		if err != nil {
			continue
		}
		removeTree(filepath.Join(root, strings.TrimPrefix(t.Dir(path), t.root)))
		_ = unix.Rmdir(root) // the last one takes the tree's own directory along
	}
}

func removeTree(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}

// OOMKills counts the processes of a path that the kernel has killed for want
// of memory; 0 where no memory limit is kept for it.
func (t *Tree) OOMKills(path string) int {
	if t.root == "" {
		return 0
	}
	files := []string{filepath.Join(t.Dir(path), "memory.events")}
	if root, err := t.root1("memory"); err == nil {
		// A cgroup of version 1 counts for itself alone; an OCI runtime makes
		// one below.
		own := filepath.Join(root, strings.TrimPrefix(t.Dir(path), t.root), "memory.oom_control")
		below, _ := filepath.Glob(filepath.Join(filepath.Dir(own), "*", "memory.oom_control"))
		files = append(append(files, own), below...)
	}
	total := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
				count, _ := strconv.Atoi(n)
				total += count
			}
		}
	}
	return total
}
