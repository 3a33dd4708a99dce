// Package standinimage makes the images that tests run: a few directories, the
// files that name users, and a program at the places where it is looked for.
package standinimage

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Build compiles a package of this module to a program that needs no library.
func Build(program, pkg string) error {
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "legion.dev/legion/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return nil
}

// New gives an image of a program, by the absolute paths at which it lies; the
// first is the file, the others lead to it.
func New(program string, at []string, config v1.Config) (v1.Image, error) {
	text, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	l := layer{w: tar.NewWriter(&b), made: map[string]bool{".": true}}
	for _, dir := range []string{"etc", "srv"} {
		l.directory(dir)
	}
	l.add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	l.file("etc/passwd", 0o644, []byte("root:x:0:0::/root:/\napp:x:1000:1001::/srv:/\nnobody:x:65534:65534::/:/\n"))
	l.file("etc/group", 0o644, []byte("root:x:0:\napp:x:1001:\nextra:x:77:app\nnogroup:x:65534:\n"))
	for i, name := range at {
		l.directory(path.Dir(name[1:]))
		if i == 0 {
			l.file(name[1:], 0o755, text)
		} else {
			l.add(tar.Header{Name: name[1:], Typeflag: tar.TypeLink, Linkname: at[0][1:], Mode: 0o755}, nil)
		}
	}
	l.fail(l.w.Close())
	if l.err != nil {
		return nil, l.err
	}
	return build(config, b.Bytes())
}

// Files gives an image of files by their paths, a map a layer, the lowest first.
// Those below bin can be executed.
func Files(layers ...map[string]string) (v1.Image, error) {
	var archives [][]byte
	for _, files := range layers {
		var b bytes.Buffer
		l := layer{w: tar.NewWriter(&b), made: map[string]bool{".": true}}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			l.directory(path.Dir(name))
			mode := int64(0o644)
			if path.Dir(name) == "bin" {
				mode = 0o755
			}
			l.file(name, mode, []byte(files[name]))
		}
		l.fail(l.w.Close())
		if l.err != nil {
			return nil, l.err
		}
		archives = append(archives, b.Bytes())
	}
	return build(v1.Config{}, archives...)
}

func build(config v1.Config, archives ...[]byte) (v1.Image, error) {
	img := empty.Image
	for _, archive := range archives {
		one, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, one); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, file)
}

// layer is an archive in the making; the first error stays.
type layer struct {
	w    *tar.Writer
	made map[string]bool
	err  error
}

func (l *layer) fail(err error) {
	if l.err == nil {
		l.err = err
	}
}

func (l *layer) add(h tar.Header, text []byte) {
	h.Size = int64(len(text))
	l.fail(l.w.WriteHeader(&h))
	_, err := l.w.Write(text)
	l.fail(err)
}

// directory adds a directory and those above it.
func (l *layer) directory(name string) {
	var dirs []string
	for ; !l.made[name]; name = path.Dir(name) {
		l.made[name] = true
		dirs = append(dirs, name)
	}
	for _, dir := range slices.Backward(dirs) {
		l.add(tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
}

func (l *layer) file(name string, mode int64, text []byte) {
	l.add(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}, text)
}
