package runner

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"legion.dev/legion/internal/service"
)

func TestRemoveDirectories(t *testing.T) {
	root := t.TempDir()
	b := BaseDirs{Runtime: root + "/run", State: root + "/lib", Cache: root + "/cache", Logs: root + "/log", Config: root + "/etc"}
	c := &service.ExecContext{
		RuntimePreserve: "yes", Runtime: []service.Directory{{Path: "a"}}, State: []service.Directory{{Path: "a/b", Links: []string{"c"}}},
		Cache: []service.Directory{{Path: "../log"}}, Logs: []service.Directory{{Path: "a"}}, Configuration: []service.Directory{{Path: "a"}},
	}
	for _, dir := range []string{"run/a/x", "lib/a/b/x", "lib/a/other", "cache", "log/a", "etc/a"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a/b", root+"/lib/c"); err != nil {
		t.Fatal(err)
	}
	for _, c1 := range []struct {
		what []string
		left []string
	}{
		{[]string{"cache", "fdstore"}, []string{"cache", "etc/a", "lib/a/b/x", "lib/a/other", "lib/c", "log/a", "run/a/x"}},
		{[]string{"runtime", "state"}, []string{"cache", "etc/a", "lib/a/other", "log/a", "run"}},
		{[]string{"configuration", "logs"}, []string{"cache", "etc", "lib/a/other", "log", "run"}},
	} {
		if err := RemoveDirectories(c, b, c1.what); err != nil {
			t.Error(err)
		}
		if got := leaves(t, root); !slices.Equal(got, c1.left) {
			t.Errorf("%q leaves %q, want %q", c1.what, got, c1.left)
		}
	}
}

// leaves are the paths below root that nothing else is below.
func leaves(t *testing.T, root string) (out []string) {
	t.Helper()
	var walk func(dir string)
	walk = func(dir string) {
		fi, err := os.Lstat(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		entries, _ := os.ReadDir(filepath.Join(root, dir))
		if !fi.IsDir() || len(entries) == 0 {
			out = append(out, dir)
			return
		}
		for _, e := range entries {
			walk(filepath.Join(dir, e.Name()))
		}
	}
	walk("")
	slices.Sort(out)
	return out
}
