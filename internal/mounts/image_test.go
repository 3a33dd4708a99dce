package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// TestImage: the source shows the image's files, those of upper layers before
// others, to be read only, until the last user is gone; the image stays as it is.
func TestImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	layer := func(name string, files ...string) string {
		at := filepath.Join(dir, name)
		for _, file := range files {
			path := filepath.Join(at, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(name), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		return at
	}
	low, high := layer("low", "a", "b"), layer("high", "b", "sub/c")
	many := []string{low}
	for len(strings.Join(many, ":")) < longest {
		many = append(many, layer(fmt.Sprintf("between-%d", len(many)), "d"))
	}
	for name, test := range map[string]struct {
		layers []string
		want   map[string]string
	}{
		"one":  {[]string{low}, map[string]string{"a": "low", "b": "low"}},
		"two":  {[]string{low, high}, map[string]string{"a": "low", "b": "high", "sub/c": "high"}},
		"many": {append(many, high), map[string]string{"a": "low", "b": "high", "d": fmt.Sprintf("between-%d", len(many)-1)}},
		"none": {nil, nil},
	} {
		m := service.Mount{
			Source: filepath.Join(dir, "volumes", name), Target: "/x", Is: "DirectoryOrCreate", ReadOnly: true,
			Image: &service.ImageFiles{ID: "sha256:1", Layers: test.layers},
		}
		err := Sources([]service.Mount{m, m})
		if errors.Is(err, unix.EPERM) || err != nil && strings.Contains(err.Error(), "need Linux 6.7") {
			t.Logf("%s: %v", name, err)
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for file, want := range test.want {
			at := filepath.Join(m.Source, file)
			if text, err := os.ReadFile(at); err != nil || string(text) != want {
				t.Errorf("%s: %s is %q (%v), want %q", name, file, text, err, want)
			}
			if err := os.WriteFile(at, nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: write to %s: %v", name, file, err)
			}
			if err := unix.Access(at, unix.X_OK); !errors.Is(err, unix.EACCES) {
				t.Errorf("%s: execute %s: %v", name, file, err)
			}
		}
		below := m
		below.SubPath = "none"
		if err := Sources([]service.Mount{below}); err == nil || !strings.Contains(err.Error(), `subPath "none"`) {
			if test.layers != nil {
				t.Errorf("%s: a subPath that is not in it: %v", name, err)
			}
		}
		for range 2 { // the second time there is nothing to do
			if err := ReleaseSources([]service.Mount{m, m}); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if left, err := os.ReadDir(m.Source); err != nil || len(left) > 0 {
			t.Errorf("%s: %d files are left (%v)", name, len(left), err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(low, "a")); err != nil || string(text) != "low" {
		t.Errorf("the image is %q (%v)", text, err)
	}
}
