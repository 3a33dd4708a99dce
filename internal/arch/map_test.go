package arch_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// pathInMap finds what docs/MAP.md puts in backticks and looks like a path.
var pathInMap = regexp.MustCompile("`([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.*-]+)+/?)`")

// TestMap checks that every path of docs/MAP.md is there.
func TestMap(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs/MAP.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, m := range pathInMap.FindAllStringSubmatch(string(text), -1) {
		found++
		matches, err := filepath.Glob(filepath.Join(root(t), strings.TrimSuffix(m[1], "/")))
		if err != nil || len(matches) == 0 {
			t.Errorf("docs/MAP.md names %s, which is not there", m[1])
		}
	}
	if found < 10 {
		t.Errorf("docs/MAP.md names %d paths: the pattern or the page is wrong", found)
	}
}
