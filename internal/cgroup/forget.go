package cgroup

import (
	"os"
	"path/filepath"
	"strings"
)

// Forget removes the cgroups that an OCI runtime has made for a container and
// left, as one does that is killed while it starts the container or takes it
// away: for want of memory, where the pod may not have what the runtime needs.
// Where version 1 is beside version 2, they are below this process's own in each
// hierarchy of version 1, and at the top of version 2. What still has processes
// stays.
func Forget(container string) error {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(own)) {
		// hierarchy:controllers:path (cgroups(7)); none are named in version 2
		_, rest, _ := strings.Cut(line, ":")
		controllers, _, _ := strings.Cut(rest, ":")
		first, _, _ := strings.Cut(controllers, ",")
		if first == "" {
			continue
		}
		if dir, err := own1(string(mountinfo), string(own), first); err == nil {
			removeTree(filepath.Join(dir, container))
		}
	}
	if mount, _, ok := findMount(string(mountinfo)); ok {
		removeTree(filepath.Join(mount, container))
	}
	return nil
}
