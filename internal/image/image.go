// Package image keeps OCI images on the disk: it pulls and imports them, unpacks
// each layer once, and removes what nobody uses. Several programs may have one
// store open: locks on files keep them apart.
package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Image is one image of the store.
type Image struct {
	// ID is the digest of its configuration file.
	ID string `json:"id"`
	// Names are those it has now ("docker.io/library/busybox:1.36"); Digests
	// those that cannot change ("docker.io/library/busybox@sha256:…").
	Names   []string `json:"names,omitempty"`
	Digests []string `json:"digests,omitempty"`
	// Layers are lowest first.
	Layers   []Layer `json:"layers"`
	Platform string  `json:"platform,omitempty"`
	Config   Config  `json:"config"`
	// Passwd and Group are the image's own /etc/passwd and /etc/group.
	Passwd string `json:"passwd,omitempty"`
	Group  string `json:"group,omitempty"`
	// Added is when it came, Used when a pod last began with it.
	Added time.Time `json:"added"`
	Used  time.Time `json:"used,omitzero"`
}

// Layer is one layer, by the digest of its uncompressed archive.
type Layer struct {
	DiffID string `json:"diffID"`
	// Size is that of the uncompressed archive, in bytes.
	Size int64 `json:"size"`
}

// Config is what an image says about how it is run (the image-spec's config).
type Config struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	User       string   `json:"user,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	StopSignal string   `json:"stopSignal,omitempty"`
}

// Size is what the image's layers take, in bytes, shared ones included.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// ErrNotFound: the store has no image of that name.
var ErrNotFound = errors.New("no such image in the store")

// Options say how a store is used.
type Options struct {
	// Flat: each image is unpacked as one directory to be copied, because
	// overlayfs is missing (Overlay tells).
	Flat bool
	// Arch is the machine's in Go's word; empty is this program's.
	Arch string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Store is a directory of images.
type Store struct {
	dir     string
	options Options
	flight  flights
	settled func(dir string) error
}

// Open opens the store in dir, and makes it where there is none.
func Open(dir string, o Options) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the image store: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{dir: dir, options: o, settled: settled}
	// Nobody but root looks into unpacked images: they hold set-user-ID
	// programs of whoever made them.
	for _, d := range []string{dir, s.path("layers"), s.path("flat"), s.path("tmp")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("cannot open the image store: %w", err)
		}
	}
	return s, nil
}

// OpenHere opens the store in dir as the machine lets it be used: with overlayfs
// where there is one.
func OpenHere(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open the image store: %w", err)
	}
	return Open(dir, Options{Flat: Overlay(dir) != nil})
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

// List gives all images, the newest first.
func (s *Store) List() ([]Image, error) {
	x, err := s.read()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(x.Images, func(a, b Image) int { return b.Added.Compare(a.Added) })
	return x.Images, nil
}

// Find finds an image by a name, a digest, or an ID or its beginning.
func (s *Store) Find(name string) (*Image, error) {
	x, err := s.read()
	if err != nil {
		return nil, err
	}
	if i := x.find(name); i != nil && s.whole(i) {
		return i, nil
	}
	return nil, fmt.Errorf("%q: %w", name, ErrNotFound)
}

// whole: all its layers are there.
func (s *Store) whole(i *Image) bool {
	for _, dir := range s.Layers(i) {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return false
		}
	}
	return true
}

// Layers are the directories of an image, lowest first: to be mounted one over
// the other, or with Options.Flat one directory to be copied.
func (s *Store) Layers(i *Image) []string {
	if s.options.Flat {
		return []string{s.path("flat", chain(i), "fs")}
	}
	var out []string
	for n, l := range i.Layers {
		// A layer that comes twice (an empty one, mostly) counts where it is
		// uppermost; overlayfs takes no directory twice.
		if !slices.Contains(i.Layers[n+1:], l) {
			out = append(out, s.path("layers", hexOf(l.DiffID), "fs"))
		}
	}
	return out
}

// Flat says whether Layers are to be copied.
func (s *Store) Flat() bool { return s.options.Flat }

// Touch notes that a pod begins with the image.
func (s *Store) Touch(id string) error {
	return s.update(func(x *index) error {
		if i := x.byID(id); i != nil {
			i.Used = s.options.Now().UTC()
		}
		return nil
	})
}

// Remove takes a name from an image; the image itself goes with the next prune.
func (s *Store) Remove(name string) error {
	return s.update(func(x *index) error {
		i := x.find(name)
		if i == nil {
			return fmt.Errorf("%q: %w", name, ErrNotFound)
		}
		full, err := Normalize(name)
		if err != nil || !slices.Contains(i.Names, full) {
			i.Names = nil
			return nil
		}
		i.Names = slices.DeleteFunc(i.Names, func(n string) bool { return n == full })
		return nil
	})
}

// hexOf is the digest without its algorithm, as the name of a directory.
func hexOf(digest string) string {
	_, hex, ok := strings.Cut(digest, ":")
	if !ok || strings.ContainsAny(hex, "/.") {
		return "invalid"
	}
	return hex
}
