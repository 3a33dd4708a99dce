package main

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/cgroup"
)

// ownCgroup is where a supervisor that uses cgroups has its own, one after the
// other; empty where the machine has no cgroup2.
var ownCgroup = sync.OnceValue(func() string {
	dir, err := cgroup.Default("legion-bench-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		return ""
	}
	return dir
})

// removeTree removes a cgroup in which nothing runs any more.
func removeTree(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}
