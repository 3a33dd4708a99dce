package podspec

import (
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestFieldTable: docs/PODS.md is the table, and what Compile lists as not
// honoured is in it, as root and otherwise.
func TestFieldTable(t *testing.T) {
	const page = "../../docs/PODS.md"
	if *rewrite {
		if err := os.WriteFile(page, []byte(FieldTable()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil || string(text) != FieldTable() {
		t.Errorf("%s is not what the table says (go test -rewrite): %v", page, err)
	}
	seen := map[string]bool{}
	for _, f := range Fields {
		if seen[f.Path] {
			t.Errorf("%s is there twice", f.Path)
		}
		seen[f.Path] = true
	}
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, root := range []bool{true, false} {
		n := node
		n.Root = root
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pod := &v1.Pod{}
			if err := yaml.Unmarshal(text, pod); err != nil {
				t.Fatal(err)
			}
			_, report := Compile(pod, n, objects)
			for _, path := range report.NotHonoured {
				switch f := FieldOf(path); {
				case f == nil:
					t.Errorf("%s: %s is not in the table", file, path)
				case f.Honour == Everywhere || f.Honour == NoMeaning || (root && f.Honour == AsRoot && f.Path != "spec.containers[].volumeMounts[]"):
					t.Errorf("%s: %s is not honoured, and the table says %q (root: %v)", file, path, f.Honour, root)
				}
			}
		}
	}
}
