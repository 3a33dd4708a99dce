// Package agnhost makes an image that stands for upstream's agnhost where no
// registry is to be asked.
package agnhost

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program stands for the one of that name as the cases use it: it pauses.
const program = `#!/bin/sh
trap 'exit 0' TERM INT
echo Paused
while :; do sleep 1000 & wait $!; done
`

// tools are what the cases run in a pod: a shell that knows [[, and these.
var tools = map[string]string{"bash": "/bin/sh", "cat": "/bin/cat", "sleep": "/bin/sleep", "touch": "/bin/touch"}

// Write writes an archive, as docker save does, of an image of one layer:
// agnhost, the tools of this machine and the libraries that they are linked with.
func Write(path string) error {
	fail := func(err error) error { return fmt.Errorf("cannot make the image of agnhost: %w", err) }
	files, err := makeLayer()
	if err != nil {
		return fail(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(files)), nil })
	if err != nil {
		return fail(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err == nil {
		image, err = mutate.Config(image, v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{"PATH=/bin"}})
	}
	if err != nil {
		return fail(err)
	}
	tag, err := name.NewTag("agnhost")
	if err != nil {
		return fail(err)
	}
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		return fail(err)
	}
	return nil
}

func makeLayer() ([]byte, error) {
	files := map[string]string{} // path in the image -> on this machine
	for name, at := range tools {
		program, err := exec.LookPath(name)
		if err != nil {
			return nil, err
		}
		files[at] = program
		libraries, err := linked(program)
		if err != nil {
			return nil, err
		}
		for _, library := range libraries {
			files[library] = library
		}
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []string{"tmp/", "var/tmp/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o1777}); err != nil {
			return nil, err
		}
	}
	if err := add(w, "agnhost", 0o755, []byte(program)); err != nil {
		return nil, err
	}
	for at, from := range files {
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := add(w, strings.TrimPrefix(at, "/"), 0o755, data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return layer.Bytes(), err
}

func add(w *tar.Writer, name string, mode int64, data []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(data))
	return err
}

// linked are the shared libraries of a program, its loader among them, as
// ldd(1) names them; none of a static one.
func linked(program string) ([]string, error) {
	out, err := exec.Command("ldd", program).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("not a dynamic executable")) {
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, out)
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		if i := slices.IndexFunc(strings.Fields(line), filepath.IsAbs); i >= 0 {
			all = append(all, strings.Fields(line)[i])
		}
	}
	return all, nil
}
