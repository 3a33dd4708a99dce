package volume

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if len(e.Name()) > 9 && e.Name()[:10] == "..version-" {
			continue
		}
		out = append(out, e.Name())
	}
	return out
}

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	write := func(want bool, files map[string]File) {
		t.Helper()
		changed, err := Write(dir, files, nil, Owner{})
		if err != nil || changed != want {
			t.Fatalf("changed %v, %v; want %v", changed, err, want)
		}
	}
	first := map[string]File{"a": {[]byte("1"), 0o644}, "sub/b": {[]byte("2"), 0o400}, "sub/c": {nil, 0o644}}
	write(true, first)
	write(false, first)
	if got := list(t, dir); !slices.Equal(got, []string{"..data", "a", "sub"}) {
		t.Errorf("entries %q", got)
	}
	// Who has the old version open in a directory handle reads on in it.
	old, err := os.OpenRoot(filepath.Join(dir, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = old.Close() }()
	handle, err := old.Open("a")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = handle.Close() }()

	write(true, map[string]File{"a": {[]byte("changed"), 0o644}, "d": {[]byte("4"), 0o600}})
	if got := list(t, dir); !slices.Equal(got, []string{"..data", "a", "d"}) {
		t.Errorf("entries %q", got)
	}
	buf := make([]byte, 10)
	if n, err := handle.Read(buf); err != nil || string(buf[:n]) != "1" {
		t.Errorf("the old file: %q, %v", buf[:n], err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "a"))
	info, err2 := os.Stat(filepath.Join(dir, "d"))
	if err != nil || err2 != nil || string(text) != "changed" || info.Mode() != 0o600 {
		t.Errorf("%q %v %v %v", text, info.Mode(), err, err2)
	}
	write(true, map[string]File{"a": {[]byte("changed"), 0o640}, "d": {[]byte("4"), 0o600}})
	write(true, nil)
	if got := list(t, dir); !slices.Equal(got, []string{"..data"}) {
		t.Errorf("entries %q", got)
	}
	if _, err := Write(dir, map[string]File{"../x": {}}, nil, Owner{}); err == nil {
		t.Error("a path led out of the volume")
	}
	if got := list(t, dir); !slices.Equal(got, []string{"..data"}) {
		t.Errorf("entries after a failure %q", got)
	}
}

// TestPoints: what is mounted inside a volume finds a directory there, with each
// version, and none outside.
func TestPoints(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	for _, text := range []string{"1", "1", "2"} {
		if _, err := Write(dir, map[string]File{"a": {Data: []byte(text), Mode: 0o644}}, []string{"inner/most", "a"}, Owner{}); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, "inner/most")); err != nil || !info.IsDir() {
			t.Errorf("the mount point: %v", err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(got) != text {
			t.Errorf("the file: %q, %v", got, err)
		}
	}
	if _, err := Write(dir, nil, []string{"../out"}, Owner{}); err == nil {
		t.Error("a mount point leads out of the volume")
	}
}
