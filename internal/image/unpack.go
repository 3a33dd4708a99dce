package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	archive "github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// flights lets one unpack what several want.
type flights struct {
	mu   sync.Mutex
	keys map[string]chan struct{}
}

// take waits until nobody has the key, and has it until the call of the result.
func (f *flights) take(ctx context.Context, key string) (func(), error) {
	for {
		f.mu.Lock()
		if f.keys == nil {
			f.keys = map[string]chan struct{}{}
		}
		busy, ok := f.keys[key]
		if !ok {
			done := make(chan struct{})
			f.keys[key] = done
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				delete(f.keys, key)
				f.mu.Unlock()
				close(done)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// unpackAll unpacks what is not there yet of an image's layers.
func (s *Store) unpackAll(ctx context.Context, layers []v1.Layer) ([]Layer, error) {
	if s.options.Flat {
		return s.unpackFlat(ctx, layers)
	}
	var out []Layer
	for n, l := range layers {
		id, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		layer := Layer{DiffID: id.String()}
		layer.Size, err = s.once(ctx, s.path("layers", hexOf(layer.DiffID)), func(dir string) (int64, error) {
			return unpack(ctx, l, func(r io.Reader) error {
				return archive.Unpack(r, dir, &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
			})
		})
		if err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", n+1, len(layers), err)
		}
		out = append(out, layer)
	}
	return out, nil
}

// unpackFlat unpacks all layers over each other.
func (s *Store) unpackFlat(ctx context.Context, layers []v1.Layer) ([]Layer, error) {
	img := &Image{}
	for _, l := range layers {
		id, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, Layer{DiffID: id.String()})
	}
	sizes := make([]int64, len(layers))
	whole, err := s.once(ctx, s.path("flat", chain(img)), func(dir string) (total int64, err error) {
		for n, l := range layers {
			sizes[n], err = unpack(ctx, l, func(r io.Reader) error {
				_, err := archive.UnpackLayer(dir, r, &archive.TarOptions{})
				return err
			})
			if err != nil {
				return 0, fmt.Errorf("layer %d of %d: %w", n+1, len(layers), err)
			}
			total += sizes[n]
		}
		return total, nil
	})
	if err != nil {
		return nil, err
	}
	for n := range img.Layers {
		img.Layers[n].Size = sizes[n]
	}
	if len(img.Layers) > 0 && sizes[0] == 0 {
		img.Layers[0].Size = whole // unpacked before
	}
	return img.Layers, nil
}

// once fills the directory dest/fs, unless it is there; then only the size that
// fill gave then is told. What is half filled is never seen.
func (s *Store) once(ctx context.Context, dest string, fill func(dir string) (int64, error)) (int64, error) {
	done, err := s.flight.take(ctx, dest)
	if err != nil {
		return 0, err
	}
	defer done()
	if size, ok := sizeOf(dest); ok {
		return size, nil
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "unpack-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	root := filepath.Join(tmp, "fs")
	if err := os.Mkdir(root, 0o755); err != nil {
		return 0, err
	}
	size, err := fill(root)
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(tmp, "size"), fmt.Appendf(nil, "%d\n", size), 0o600); err != nil {
		return 0, err
	}
	if err := s.settled(tmp); err != nil {
		return 0, err
	}
	err = os.Rename(tmp, dest)
	if _, ok := sizeOf(dest); ok {
		return size, nil // another program may have been first
	}
	return size, err
}

func sizeOf(dest string) (int64, bool) {
	text, err := os.ReadFile(filepath.Join(dest, "size"))
	if err != nil {
		return 0, false
	}
	var n int64
	_, err = fmt.Sscan(string(text), &n)
	return n, err == nil
}

// settled waits until all of it is on the disk.
func settled(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// unpack gives a layer's archive to apply and holds it to its digest.
func unpack(ctx context.Context, l v1.Layer, apply func(io.Reader) error) (int64, error) {
	want, err := l.DiffID()
	if err != nil {
		return 0, err
	}
	plain, err := l.Uncompressed()
	if err != nil {
		return 0, err
	}
	defer func() { _ = plain.Close() }()
	sum := sha256.New()
	count := &counter{}
	in := io.TeeReader(reader{ctx, plain}, io.MultiWriter(sum, count))
	if err := apply(in); err != nil {
		return 0, err
	}
	// What follows the archive's end counts for the digest, too.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return 0, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return 0, fmt.Errorf("its content has the digest sha256:%s, and not %s as the image says", got, want)
	}
	return count.n, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// reader ends with ctx.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// chain names all layers of an image together (the image-spec's ChainID).
func chain(i *Image) string {
	id := ""
	for _, l := range i.Layers {
		if id == "" {
			id = l.DiffID
			continue
		}
		id = "sha256:" + hex.EncodeToString(digest(id+" "+l.DiffID))
	}
	if id == "" {
		return "empty"
	}
	return hexOf(id)
}

func digest(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// accounts reads a small file from the image, as its topmost layer has it.
func (s *Store) accounts(i *Image, name string) string {
	dirs := s.Layers(i)
	for n := len(dirs) - 1; n >= 0; n-- {
		text, decided := readInside(dirs[n], name)
		if decided {
			return text
		}
	}
	return ""
}

// most is how long a password file may be.
const most = 1 << 20

// readInside reads a file of a layer. decided: what lies below does not count,
// because the layer has the file, or has removed it.
func readInside(dir, name string) (text string, decided bool) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", false
	}
	defer func() { _ = root.Close() }()
	for at := filepath.Dir(name); at != "."; at = filepath.Dir(at) {
		if st, err := root.Lstat(at); err == nil && !st.IsDir() && st.Mode()&os.ModeSymlink == 0 {
			return "", true
		}
		buf := make([]byte, 1)
		if n, err := unix.Lgetxattr(filepath.Join(dir, at), "trusted.overlay.opaque", buf); err == nil && n == 1 && buf[0] == 'y' {
			decided = true
		}
	}
	st, err := root.Stat(name)
	if err != nil {
		return "", decided
	}
	if !st.Mode().IsRegular() {
		return "", true
	}
	f, err := root.Open(name)
	if err != nil {
		return "", true
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return "", true
	}
	return string(data), true
}

// Overlay says why overlayfs cannot be used with writable layers below dir, nil
// if it can.
func Overlay(dir string) error {
	tmp, err := os.MkdirTemp(dir, "overlay-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	at := map[string]string{}
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		at[d] = filepath.Join(tmp, d)
		if err := os.Mkdir(at[d], 0o700); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at["lower"], at["upper"], at["work"])
	if strings.ContainsAny(tmp, ":,\\") {
		return errors.New("the path has a character that overlayfs cannot have")
	}
	if err := unix.Mount("legion", at["merged"], "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay: %w", err)
	}
	return unix.Unmount(at["merged"], unix.MNT_DETACH)
}
