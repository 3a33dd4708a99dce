package cgroup

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

// TestRelimitMemory: limits of what runs are raised and lowered, and one that was not
// there before takes in what runs.
func TestRelimitMemory(t *testing.T) {
	tree := open(t)
	const path = "grows.service"
	dir, err := tree.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	spawn(t, dir, "exec sleep 1000")
	t.Cleanup(func() {
		_ = tree.Kill(path)
		for deadline := time.Now().Add(time.Minute); tree.Populated(path); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not end")
			}
		}
		if err := tree.Remove(path); err != nil {
			t.Error(err)
		}
	})
	of := func(memory uint64) *service.Limits {
		return &service.Limits{MemoryMax: &service.Amount{Value: memory}, MemorySwapMax: &service.Amount{}}
	}
	if _, lost := tree.Limit(path, of(64<<20)); slices.ContainsFunc(lost, func(l string) bool { return strings.HasPrefix(l, "MemoryMax=") }) {
		t.Skip(lost)
	}
	file := filepath.Join(dir, "memory.max")
	if root, err := tree.root1("memory"); err == nil {
		file = filepath.Join(root, path, "memory.limit_in_bytes")
	}
	for _, memory := range []uint64{64 << 20, 128 << 20, 32 << 20} {
		lost := tree.Relimit(path, nil, of(memory))
		if n, err := number(file, ""); slices.ContainsFunc(lost, func(l string) bool { return strings.HasPrefix(l, "MemoryMax=") }) || err != nil || uint64(n) != memory {
			t.Errorf("%d: %v, and the limit is %d (%v)", memory, lost, n, err)
		}
	}
	if strings.HasPrefix(filepath.Base(file), "memory.limit") {
		all, err1 := tree.Pids(path)
		in, err2 := within(filepath.Dir(file))
		if len(all) == 0 || !slices.Equal(all, in) || err1 != nil || err2 != nil {
			t.Errorf("of %v, %v are limited (%v, %v)", all, in, err1, err2)
		}
	}
}
