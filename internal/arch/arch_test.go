package arch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"legion.dev/legion/internal/arch"
)

type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	Imports    []string
	GoFiles    []string
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Doc,Imports,GoFiles"}, args...)...)
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %v: %v\n%s", args, err, stderr.String())
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// short cuts the module path off, "" for what is not ours.
func short(path string) string {
	s, ok := strings.CutPrefix(path, arch.Module+"/")
	if !ok {
		return ""
	}
	return s
}

// ringOf finds the ring of a package: its own entry or that of the nearest
// parent folder, so that internal/cli/x is in the ring of internal/cli.
func ringOf(path string) (string, int, bool) {
	for p := path; p != "." && p != "internal"; p = filepath.Dir(p) {
		if r, ok := arch.Rings[p]; ok {
			return p, r, true
		}
	}
	return "", 0, false
}

func TestRings(t *testing.T) {
	for _, p := range list(t, "./internal/...") {
		from := short(p.ImportPath)
		if from == "internal/arch" || strings.HasPrefix(from, "internal/testing") {
			continue
		}
		home, ring, ok := ringOf(from)
		if !ok {
			t.Errorf("%s: no ring in internal/arch/arch.go", from)
			continue
		}
		for _, imp := range p.Imports {
			to := short(imp)
			if to == "" {
				if ring <= 1 && slices.Contains(arch.Impure, imp) && arch.ImpureAllowed[[2]string{from, imp}] == "" {
					t.Errorf("%s (ring %d) imports %s: rings 0 and 1 are pure", from, ring, imp)
				}
				continue
			}
			toHome, toRing, ok := ringOf(to)
			switch {
			case !ok:
				t.Errorf("%s imports %s, which has no ring", from, to)
			case toHome == home || toRing < ring:
			case toRing == ring && (ring == 1 || arch.Within[[2]string{home, toHome}] != ""):
				// Pure packages may build on each other; Go forbids cycles.
			default:
				t.Errorf("%s (ring %d) imports %s (ring %d)", from, ring, to, toRing)
			}
		}
	}
}

func TestPrograms(t *testing.T) {
	for prog, prefixes := range arch.Forbidden {
		if _, err := os.Stat(filepath.Join(root(t), prog)); err != nil {
			t.Logf("%s: not there yet", prog)
			continue
		}
		for _, p := range list(t, "-deps", "./"+prog) {
			for _, prefix := range prefixes {
				if strings.HasPrefix(p.ImportPath, prefix) {
					t.Errorf("%s links %s", prog, p.ImportPath)
				}
			}
		}
	}
}

func TestOneDocCommentEach(t *testing.T) {
	for _, p := range list(t, "./...") {
		if len(p.GoFiles) == 0 {
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}
