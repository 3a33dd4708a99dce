package pathwatch

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

// until waits for a change of the name that is touched, or any.
func until(t *testing.T, w *Watch, name string, touched bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case c := <-w.Changes():
			if c.Name == name && (c.Touched || !touched) {
				return
			}
		case <-deadline:
			t.Fatalf("nothing is told of %s", name)
		}
	}
}

func TestPathsThatComeAndChange(t *testing.T) {
	dir := t.TempDir()
	deep := filepath.Join(dir, "a", "b", "file")
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	watch := func(name, kind, path string) {
		if err := w.Watch(name, &service.Path{Conditions: []service.PathCondition{{Kind: kind, Path: path}}}); err != nil {
			t.Fatal(err)
		}
	}
	watch("exists", "Exists", deep)
	if err := os.MkdirAll(filepath.Dir(deep), 0o755); err != nil {
		t.Fatal(err)
	}
	until(t, w, "exists", false)
	w.Forget("exists")

	watch("changed", "Changed", deep)
	if err := os.WriteFile(deep, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	until(t, w, "changed", true)
	// Replaced by rename, as editors do.
	other := filepath.Join(dir, "a", "other")
	if err := os.WriteFile(other, []byte("y"), 0o644); err != nil {
		t.Fatal(err)
	}
	for len(w.Changes()) > 0 {
		<-w.Changes()
	}
	if err := os.Rename(other, deep); err != nil {
		t.Fatal(err)
	}
	until(t, w, "changed", true)
	w.Forget("changed")

	watch("modified", "Modified", deep)
	f, err := os.OpenFile(deep, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("z"); err != nil { // and it stays open
		t.Fatal(err)
	}
	until(t, w, "modified", true)
	w.Forget("modified")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.marks) > 0 || len(w.existed) > 0 {
		t.Errorf("left over: %v, %v", w.marks, w.existed)
	}
}
