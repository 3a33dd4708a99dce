package mounts

import (
	"os"
	"path/filepath"
	"testing"

	"legion.dev/legion/internal/service"
)

// TestSources: what may be made is made, whatever the path looks like, and what
// is of another kind is refused.
func TestSources(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	for _, m := range []service.Mount{
		{Source: filepath.Join(dir, "deep/a") + "/", Is: "DirectoryOrCreate"},
		{Source: filepath.Join(dir, "deep/b") + "/", Is: "OrCreate"},
		{Source: file, Is: "FileOrCreate"},
		{Source: file, Is: "OrCreate"},
		{Source: file},
	} {
		for range 2 {
			if err := Sources([]service.Mount{m}); err != nil {
				t.Errorf("%+v: %v", m, err)
			}
		}
	}
	for _, name := range []string{"deep/a", "deep/b"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.IsDir() || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	for _, m := range []service.Mount{
		{Source: file, Is: "Directory"}, {Source: dir, Is: "FileOrCreate"}, {Source: filepath.Join(dir, "none")}, {Source: filepath.Join(dir, "none"), Is: "File"},
	} {
		if err := Sources([]service.Mount{m}); err == nil {
			t.Errorf("%+v is taken", m)
		}
	}
}
