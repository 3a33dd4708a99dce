package hostd

import (
	"os"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRoomForDescriptors: the kernel says how large the table is.
func TestRoomForDescriptors(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < descriptors {
		t.Skipf("%d descriptors are allowed, %v", limit.Cur, err)
	}
	roomForDescriptors()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	size := regexp.MustCompile(`(?m)^FDSize:\s*(\d+)$`).FindSubmatch(status)
	if size == nil {
		t.Skip("this kernel does not say how large the table is")
	}
	if n, err := strconv.Atoi(string(size[1])); err != nil || n < descriptors {
		t.Errorf("there is room for %s descriptors", size[1])
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err != nil || n >= descriptors-1 {
			t.Errorf("descriptor %s is open", e.Name())
		}
	}
}
