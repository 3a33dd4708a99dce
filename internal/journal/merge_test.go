package journal

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMergeHoldsLittle: logs of a size that legiond must never hold are merged
// in order.
func TestMergeHoldsLittle(t *testing.T) {
	const lines, size = 2000, 1000
	dir := t.TempDir()
	services := []string{"a", "b", "c"}
	begin := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for i, s := range services {
		var text strings.Builder
		for n := range lines {
			at := begin.Add(time.Duration(n*len(services)+i) * time.Millisecond)
			fmt.Fprintf(&text, "%s stdout F %d %s\n", at.Format(timeFormat), n*len(services)+i, strings.Repeat("x", size))
		}
		at := filepath.Join(dir, "g", s)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "000001.log"), []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	j := open(t, dir, Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(j.Read(t.Context(), "g", "", Query{Tail: -1}, w)) }()
	seen, in := 0, bufio.NewScanner(r)
	for ; in.Scan(); seen++ {
		if n, _, _ := bytes.Cut(in.Bytes()[len("2026-11-01T00:00:00.000000000Z stdout F "):], []byte(" ")); string(n) != strconv.Itoa(seen) {
			t.Fatalf("line %d is %.60q", seen, in.Bytes())
		}
	}
	runtime.ReadMemStats(&after)
	if in.Err() != nil || seen != lines*len(services) {
		t.Errorf("%d lines, %v", seen, in.Err())
	}
	if all, took := uint64(lines*size*len(services)), after.TotalAlloc-before.TotalAlloc; took > all/4 {
		t.Errorf("%d bytes of memory for %d of logs", took, all)
	}
}
