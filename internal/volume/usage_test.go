package volume

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestUsage: what is allotted counts, each file once.
func TestUsage(t *testing.T) {
	dir := t.TempDir()
	usage := func() int64 {
		t.Helper()
		n, err := Usage(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n, err := Usage(t.Context(), filepath.Join(dir, "none")); n != 0 || err != nil {
		t.Errorf("what is not there takes %d, %v", n, err)
	}
	empty := usage()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	full := usage()
	if took := full - empty; took < 1<<20 || took > 1<<20+1<<16 {
		t.Errorf("a file of 1 MiB takes %d", took)
	}
	if err := os.Link(big, filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	if now := usage(); now-full > 1<<16 {
		t.Errorf("its second name takes %d", now-full)
	}
	hole := filepath.Join(dir, "hole")
	if err := os.WriteFile(hole, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(hole, 1<<30); err != nil {
		t.Fatal(err)
	}
	if now := usage(); now-full > 1<<16 {
		t.Errorf("a hole takes %d", now-full)
	}
}
