package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// Import takes the images of an archive: one that docker has saved, or a
// directory of the OCI's image layout, packed; both may be compressed by gzip.
// as, where not empty, is the name of the one image in it.
func (s *Store) Import(ctx context.Context, archive io.Reader, as string) ([]*Image, error) {
	if as != "" {
		full, err := Normalize(as)
		if err != nil {
			return nil, err
		}
		as = full
	}
	unlock, err := s.lock("pulls", unix.LOCK_SH) // or a prune would take it for a leftover
	if err != nil {
		return nil, err
	}
	defer unlock()
	tmp, err := os.MkdirTemp(s.path("tmp"), "import-")
	if err != nil {
		return nil, fmt.Errorf("cannot import: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	whole := filepath.Join(tmp, "archive.tar")
	if err := spool(reader{ctx, archive}, whole); err != nil {
		return nil, fmt.Errorf("cannot import: %w", err)
	}
	found, err := contents(whole, tmp)
	if err != nil {
		return nil, fmt.Errorf("cannot import: %w", err)
	}
	if as != "" && len(found) != 1 {
		return nil, fmt.Errorf("cannot import as %s: the archive has %d images", as, len(found))
	}
	var out []*Image
	for _, f := range found {
		names := f.names
		if as != "" {
			names = []string{as}
		}
		if len(names) == 0 {
			return out, errors.New("cannot import: an image of the archive has no name; give one with --name")
		}
		img, err := s.add(ctx, f.image, names, nil)
		if err != nil {
			return out, fmt.Errorf("cannot import %s: %w", strings.Join(names, ", "), err)
		}
		out = append(out, img)
	}
	return out, nil
}

// packed is one image of an archive.
type packed struct {
	image v1.Image
	names []string
}

// spool writes the archive to a file, unpacked where it was compressed.
func spool(in io.Reader, path string) error {
	buffered := bufio.NewReader(in)
	in = buffered
	if head, err := buffered.Peek(2); err == nil && bytes.Equal(head, []byte{0x1f, 0x8b}) {
		plain, err := gzip.NewReader(buffered)
		if err != nil {
			return err
		}
		in = plain
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	return errors.Join(err, f.Close())
}

// contents finds the images of an archive.
func contents(archive, tmp string) ([]packed, error) {
	kind, err := kindOf(archive)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "manifest.json":
		return docker(archive)
	case "index.json":
		dir := filepath.Join(tmp, "layout")
		if err := unpackLayout(archive, dir); err != nil {
			return nil, err
		}
		index, err := layout.ImageIndexFromPath(dir)
		if err != nil {
			return nil, err
		}
		return oci(index)
	}
	return nil, errors.New("it is neither an archive of docker (there is no manifest.json) nor of the OCI's layout (there is no index.json)")
}

// kindOf gives the file by which an archive is known. One that is both, as
// newer dockers write, counts as docker's: there the names are whole.
func kindOf(archive string) (string, error) {
	kind := ""
	err := each(archive, func(h *tar.Header, _ io.Reader) error {
		if name := path.Clean(h.Name); name == "manifest.json" || (name == "index.json" && kind == "") {
			kind = name
		}
		return nil
	})
	return kind, err
}

func each(archive string, do func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("it is no archive: %w", err)
		}
		if err := do(h, r); err != nil {
			return err
		}
	}
}

func docker(archive string) ([]packed, error) {
	open := func() (io.ReadCloser, error) { return os.Open(archive) }
	list, err := tarball.LoadManifest(open)
	if err != nil {
		return nil, err
	}
	var out []packed
	for _, m := range list {
		p := packed{}
		var tag *name.Tag
		for _, t := range m.RepoTags {
			full, err := Normalize(t)
			if err != nil {
				return nil, err
			}
			p.names = append(p.names, full)
			if tag == nil {
				parsed, err := name.NewTag(t)
				if err != nil {
					return nil, err
				}
				tag = &parsed
			}
		}
		if tag == nil && len(list) > 1 {
			return nil, errors.New("of several images one has no name")
		}
		if p.image, err = tarball.Image(open, tag); err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// unpackLayout takes the regular files of a layout; it has no others.
func unpackLayout(archive, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return each(archive, func(h *tar.Header, r io.Reader) error {
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(name) {
			return nil
		}
		if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	})
}

// nameKeys are the annotations that name an image of a layout, the best first.
var nameKeys = []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"}

// oci gives the images of a layout for this machine's kind.
func oci(index v1.ImageIndex) ([]packed, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var out []packed
	for _, d := range manifest.Manifests {
		p := packed{}
		for _, key := range nameKeys {
			// A mere tag is no name.
			if n := d.Annotations[key]; strings.ContainsAny(n, "/:") && len(p.names) == 0 {
				full, err := Normalize(n)
				if err != nil {
					return nil, err
				}
				p.names = []string{full}
			}
		}
		switch {
		case d.MediaType.IsIndex():
			inner, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			if p.image, err = ofPlatform(inner); err != nil {
				return nil, err
			}
		case d.MediaType.IsImage():
			if p.image, err = index.Image(d.Digest); err != nil {
				return nil, err
			}
		default:
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// ofPlatform chooses this machine's image.
func ofPlatform(index v1.ImageIndex) (v1.Image, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	want := (&Store{}).platform()
	for _, d := range manifest.Manifests {
		if d.MediaType.IsImage() && d.Platform != nil && d.Platform.Satisfies(want) {
			return index.Image(d.Digest)
		}
	}
	return nil, fmt.Errorf("none of its images is for %s", want)
}
