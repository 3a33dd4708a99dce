package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	archive "github.com/moby/go-archive"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// tree shows a directory as lines: kind, mode, and content or target of each.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // overlayfs lists a whiteout under which there is nothing
		}
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			text += " " + string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			text = "-> " + target
		}
		rel, err := filepath.Rel(dir, name)
		out[rel] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply unpacks archives over each other, as the store does.
func apply(s *Store, t testing.TB, archives [][]byte) (*Image, error) {
	var layers []v1.Layer
	for _, a := range archives {
		layers = append(layers, layerOf(t, a))
	}
	img := &Image{}
	var err error
	img.Layers, err = s.unpackAll(t.Context(), layers)
	return img, err
}

// quick opens a store that does not wait for the disk.
func quick(t *rapid.T, dir string, flat bool) *Store {
	s, err := Open(dir, Options{Flat: flat})
	if err != nil {
		t.Fatal(err)
	}
	s.settled = func(string) error { return nil }
	return s
}

// harmless are names and contents of which nothing can go wrong; the model
// below knows what becomes of them.
var (
	parts   = rapid.SampledFrom([]string{"a", "b", "c"})
	names   = rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(parts, 1, 3).Draw(t, "parts"), "/") })
	changes = rapid.Custom(func(t *rapid.T) entry {
		e := entry{name: names.Draw(t, "name")}
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			e.kind = tar.TypeDir
			e.mode = rapid.SampledFrom([]int64{0o755, 0o700, 0o1777}).Draw(t, "mode")
		case 1:
			e.kind, e.link = tar.TypeSymlink, "../elsewhere"
		case 2:
			e.name = path.Join(path.Dir(e.name), ".wh."+path.Base(e.name))
		case 3:
			e.name = path.Join(e.name, ".wh..wh..opq")
		default:
			e.text = rapid.StringMatching(`[a-z]{0,3}`).Draw(t, "text")
		}
		return e
	})
)

// layerSpec draws a layer as builders write it: what is above an entry is a
// directory of the same layer and comes first, no name comes twice, and what is
// removed is not made as well.
func layerSpec(t *rapid.T) []entry {
	kinds := map[string]string{}
	var out []entry
	for _, e := range rapid.SliceOfN(changes, 0, 6).Draw(t, "layer") {
		base := path.Base(e.name)
		target := e.name
		if base == ".wh..wh..opq" {
			target = path.Dir(e.name)
		} else if after, ok := strings.CutPrefix(base, ".wh."); ok {
			target = path.Join(path.Dir(e.name), after)
		}
		var above []string
		clash := false
		for at := path.Dir(e.name); at != "."; at = path.Dir(at) {
			clash = clash || (kinds[at] != "" && kinds[at] != "dir")
			if kinds[at] == "" {
				above = append(above, at)
			}
		}
		if clash || (kinds[target] != "" && base != ".wh..wh..opq") || kinds[e.name] != "" {
			continue
		}
		for _, at := range slices.Backward(above) {
			kinds[at] = "dir"
			out = append(out, entry{name: at + "/", kind: tar.TypeDir})
		}
		kinds[e.name] = "file"
		switch {
		case base == ".wh..wh..opq":
		case target != e.name:
			kinds[target] = "gone"
		case e.kind == tar.TypeDir:
			kinds[target] = "dir"
		}
		out = append(out, e)
	}
	return out
}

// model is what the layers make together (the image-spec's layer.md).
func model(layers [][]entry) map[string]string {
	all := map[string]string{}
	remove := func(name string, itself bool) {
		maps.DeleteFunc(all, func(k, _ string) bool { return strings.HasPrefix(k, name+"/") || (itself && k == name) })
	}
	for _, l := range layers {
		// What a layer removes is of those below it only.
		for _, e := range l {
			dir, base := path.Dir(e.name), path.Base(e.name)
			if base == ".wh..wh..opq" {
				remove(dir, false)
			} else if after, ok := strings.CutPrefix(base, ".wh."); ok {
				remove(path.Join(dir, after), true)
			}
		}
		for _, e := range l {
			name := path.Clean(e.name)
			if strings.HasPrefix(path.Base(name), ".wh.") {
				continue
			}
			mode := fs.FileMode(e.mode & 0o777)
			if e.mode&0o1000 != 0 {
				mode |= fs.ModeSticky
			}
			switch e.kind {
			case tar.TypeDir:
				if mode == 0 {
					mode = 0o755
				}
				if !strings.HasPrefix(all[name], "d") {
					remove(name, true)
				}
				all[name] = (mode | fs.ModeDir).String()
			case tar.TypeSymlink:
				remove(name, true)
				all[name] = "-> " + e.link
			default:
				remove(name, true)
				all[name] = fs.FileMode(0o644).String() + " " + e.text
			}
		}
	}
	return all
}

// TestLayersProperty: layers over each other are what the image-spec says, as
// one directory and, where the machine has it, by overlayfs.
func TestLayersProperty(t *testing.T) {
	overlay := os.Geteuid() == 0 && Overlay(t.TempDir()) == nil
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp("", "legion-layers-")
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		var specs [][]entry
		var archives [][]byte
		for range rapid.IntRange(1, 4).Draw(r, "layers") {
			spec := layerSpec(r)
			specs = append(specs, spec)
			archives = append(archives, pack(t, spec...))
		}
		want := model(specs)
		for _, flat := range []bool{true, false} {
			if !flat && !overlay {
				continue
			}
			s := quick(r, filepath.Join(dir, fmt.Sprint("flat-", flat)), flat)
			img, err := apply(s, t, archives)
			if err != nil {
				r.Fatalf("flat %v: %v\n%+v", flat, err, specs)
			}
			at := s.Layers(img)[0]
			if !flat {
				at = filepath.Join(dir, "merged")
				if err := os.Mkdir(at, 0o700); err != nil {
					r.Fatal(err)
				}
				lower := slices.Clone(s.Layers(img))
				slices.Reverse(lower)
				lower = append(lower, t.TempDir()) // a single one is no overlay
				if err := unix.Mount("legion", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
					r.Fatal(err)
				}
				defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
			}
			if got := tree(t, at); !maps.Equal(got, want) {
				r.Fatalf("flat %v:\n got %v\nwant %v\nof %+v", flat, got, want, specs)
			}
		}
	})
}

// evil are names and targets that try to get out.
var evil = []string{"a", "a/b", "..", "../x", "../../x", "/x", "/", ".", "a/../../x", "link", "link/x", "link/../x", "a/link/x", ".wh.a", ".wh..", "link/.wh.x", "link/.wh..wh..opq", ".wh..wh..opq", "../.wh.victim", "..wh..", ""}

// TestNoEscape: whatever an archive tries, nothing outside its directory is
// made, changed or removed; and what a container would find by its links is no
// concern of ours.
func TestNoEscape(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		base, err := os.MkdirTemp("", "legion-escape-")
		if err != nil {
			r.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(base) }()
		outside := victim(t, base)
		targets := append(slices.Clone(evil), base, filepath.Join(base, "victim"), "../../../victim", "../../../../victim/file")
		any := rapid.SampledFrom(targets)
		var archives [][]byte
		for range rapid.IntRange(1, 3).Draw(r, "layers") {
			var entries []entry
			for range rapid.IntRange(1, 6).Draw(r, "entries") {
				entries = append(entries, entry{
					name: any.Draw(r, "name"), link: any.Draw(r, "link"), text: "evil", mode: 0o777,
					kind: rapid.SampledFrom([]byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink}).Draw(r, "kind"),
				})
			}
			archives = append(archives, pack(t, entries...))
		}
		for _, flat := range []bool{true, false} {
			s := quick(r, filepath.Join(base, "deep", fmt.Sprint("flat-", flat)), flat)
			_, _ = apply(s, t, archives) // refused or not
			if got := victim(t, base); !maps.Equal(got, outside) {
				r.Fatalf("flat %v: outside is %v, was %v", flat, got, outside)
			}
		}
	})
}

// victim makes and shows what lies beside the store.
func victim(t testing.TB, base string) map[string]string {
	t.Helper()
	dir := filepath.Join(base, "victim")
	if err := os.Mkdir(dir, 0o755); err == nil {
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := tree(t, base)
	maps.DeleteFunc(all, func(k, _ string) bool { return strings.HasPrefix(k, "deep") })
	return all
}

// FuzzUnpack gives arbitrary bytes as a layer.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{})
	f.Add(pack(f, entry{name: "a/"}, entry{name: "a/b", text: "x"}, entry{name: "../x"}))
	f.Add(pack(f, entry{name: "l", kind: tar.TypeSymlink, link: "../../victim"}, entry{name: "l/file", text: "evil"}))
	f.Add(pack(f, entry{name: "l", kind: tar.TypeLink, link: "../../victim/file"}, entry{name: "l", text: "evil"}))
	f.Add(pack(f, entry{name: "l", kind: tar.TypeSymlink, link: ".."}, entry{name: "l/.wh.victim"}, entry{name: "l/.wh..wh..opq"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		outside := victim(t, base)
		for _, overlay := range []bool{false, true} {
			dir := filepath.Join(base, "deep", fmt.Sprint(overlay))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if overlay {
				_ = archive.Unpack(bytes.NewReader(data), dir, &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
			} else {
				_, _ = archive.UnpackLayer(dir, bytes.NewReader(data), &archive.TarOptions{})
			}
			if got := victim(t, base); !maps.Equal(got, outside) {
				t.Fatalf("outside is %v, was %v", got, outside)
			}
		}
	})
}

// TestAccounts: the password file is the topmost layer's, and none where that
// has removed it.
func TestAccounts(t *testing.T) {
	file := func(text string) []byte {
		return pack(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/passwd", text: text})
	}
	for what, test := range map[string]struct {
		layers [][]byte
		want   string
	}{
		"none":               {[][]byte{pack(t, entry{name: "x"})}, ""},
		"below":              {[][]byte{file("one"), pack(t, entry{name: "x"})}, "one"},
		"over":               {[][]byte{file("one"), file("two")}, "two"},
		"removed":            {[][]byte{file("one"), pack(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/.wh.passwd"})}, ""},
		"all of etc removed": {[][]byte{file("one"), pack(t, entry{name: ".wh.etc"})}, ""},
		"etc made anew":      {[][]byte{file("one"), pack(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/.wh..wh..opq"})}, ""},
		"a link":             {[][]byte{pack(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/passwd", kind: tar.TypeSymlink, link: "/etc/passwd"})}, ""},
		"a link within":      {[][]byte{pack(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/users", text: "three"}, entry{name: "etc/passwd", kind: tar.TypeSymlink, link: "users"})}, "three"},
	} {
		s, _ := open(t)
		img, err := apply(s, t, test.layers)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.accounts(img, "etc/passwd"); got != test.want {
			t.Errorf("%s: %q, want %q", what, got, test.want)
		}
	}
}
