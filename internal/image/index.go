package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
)

// index is the list of images; it is one file, replaced as a whole.
type index struct {
	Images []Image `json:"images"`
}

func (s *Store) read() (*index, error) {
	x := &index{}
	text, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err == nil {
		err = json.Unmarshal(text, x)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the list of images: %w", err)
	}
	return x, nil
}

// update changes the list while nobody else does.
func (s *Store) update(change func(*index) error) error {
	unlock, err := s.lock("lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.read()
	if err != nil {
		return err
	}
	if err := change(x); err != nil {
		return err
	}
	text, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("cannot write the list of images: %w", err)
	}
	if err := writeFile(s.path("index.json"), text); err != nil {
		return fmt.Errorf("cannot write the list of images: %w", err)
	}
	return nil
}

// writeFile replaces a file so that a crash leaves the old or the new.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// lock takes a lock that other programs see; how is as in flock(2).
func (s *Store) lock(name string, how int) (func(), error) {
	fd, err := unix.Open(s.path(name), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the image store: %w", err)
	}
	for {
		err := unix.Flock(fd, how)
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			unix.Close(fd)
			return nil, fmt.Errorf("cannot lock the image store: %w", err)
		}
	}
}

func (x *index) byID(id string) *Image {
	for i := range x.Images {
		if x.Images[i].ID == id {
			return &x.Images[i]
		}
	}
	return nil
}

// shortest is how much of an ID names an image.
const shortest = 6

func (x *index) find(name string) *Image {
	if full, err := Normalize(name); err == nil {
		for i := range x.Images {
			if m := &x.Images[i]; slices.Contains(m.Names, full) || slices.Contains(m.Digests, full) {
				return m
			}
		}
	}
	hex := strings.TrimPrefix(name, "sha256:")
	if len(hex) < shortest {
		return nil
	}
	var found *Image
	for i := range x.Images {
		if strings.HasPrefix(hexOf(x.Images[i].ID), hex) {
			if found != nil {
				return nil // it could be either
			}
			found = &x.Images[i]
		}
	}
	return found
}

// put adds an image or what is new of it; its names are no other's any more.
func (x *index) put(img Image) *Image {
	for i := range x.Images {
		if x.Images[i].ID != img.ID {
			x.Images[i].Names = slices.DeleteFunc(x.Images[i].Names, func(n string) bool { return slices.Contains(img.Names, n) })
		}
	}
	old := x.byID(img.ID)
	if old == nil {
		x.Images = append(x.Images, img)
		return &x.Images[len(x.Images)-1]
	}
	old.Names = union(old.Names, img.Names)
	old.Digests = union(old.Digests, img.Digests)
	return old
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// Normalize gives an image's full name: registry, repository, and a tag or a
// digest. Without a tag it is "latest"; with both, the digest counts.
func Normalize(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %w", name, err)
	}
	return ref.String(), nil
}
