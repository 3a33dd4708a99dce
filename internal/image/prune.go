package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Prune says which images may go. Those that Keep names stay in any case.
type Prune struct {
	// Keep says that an image is in use; nil is that none is.
	Keep func(*Image) bool
	// Unused is how long an image has to have been of no use.
	Unused time.Duration
	// Nameless: only those without a name.
	Nameless bool
	// Free, where positive, is how many bytes to free: the images of which
	// there was no use for longest go until they are free, and then no more.
	Free int64
}

// Pruned is what was removed.
type Pruned struct {
	Images []Image
	// Bytes are those of the layers that are gone.
	Bytes int64
}

// Prune removes images, then the layers that no image has any more. It waits
// for pulls that are under way.
func (s *Store) Prune(ctx context.Context, p Prune) (Pruned, error) {
	if err := ctx.Err(); err != nil {
		return Pruned{}, err
	}
	unlock, err := s.lock("pulls", unix.LOCK_EX)
	if err != nil {
		return Pruned{}, err
	}
	defer unlock()
	var out Pruned
	err = s.update(func(x *index) error {
		out.Images = s.choose(x, p)
		x.Images = slices.DeleteFunc(x.Images, func(i Image) bool {
			return slices.ContainsFunc(out.Images, func(o Image) bool { return o.ID == i.ID })
		})
		return nil
	})
	if err != nil {
		return Pruned{}, err
	}
	out.Bytes, err = s.sweep()
	return out, err
}

// choose gives the images to remove.
func (s *Store) choose(x *index, p Prune) []Image {
	all := slices.Clone(x.Images)
	slices.SortStableFunc(all, func(a, b Image) int { return a.last().Compare(b.last()) })
	now := s.options.Now()
	// users count the images that have a layer: what others have is not freed.
	users := map[string]int{}
	for i := range all {
		for _, l := range all[i].Layers {
			users[l.DiffID]++
		}
	}
	var out []Image
	free := int64(0)
	for i := range all {
		img := &all[i]
		switch {
		case p.Free > 0 && free >= p.Free:
			return out
		case p.Keep != nil && p.Keep(img),
			p.Nameless && len(img.Names) > 0,
			now.Sub(img.last()) < p.Unused:
			continue
		}
		for _, l := range img.Layers {
			if users[l.DiffID]--; users[l.DiffID] == 0 {
				free += l.Size
			}
		}
		out = append(out, *img)
	}
	return out
}

// last is when there was a use for the image.
func (i *Image) last() time.Time {
	if i.Used.After(i.Added) {
		return i.Used
	}
	return i.Added
}

// sweep removes layers of no image, and what broken-off pulls have left. There
// is no pull under way.
func (s *Store) sweep() (int64, error) {
	x, err := s.read()
	if err != nil {
		return 0, err
	}
	keep := map[string]bool{}
	for i := range x.Images {
		for _, dir := range s.Layers(&x.Images[i]) {
			keep[dir] = true
		}
	}
	var freed int64
	var problems []error
	for _, kind := range []string{"layers", "flat"} {
		entries, err := os.ReadDir(s.path(kind))
		problems = append(problems, err)
		for _, e := range entries {
			dir := s.path(kind, e.Name())
			if keep[s.path(kind, e.Name(), "fs")] {
				continue
			}
			size, _ := sizeOf(dir)
			// Whole or not at all, for whoever looks next.
			gone := s.path("tmp", "gone-"+kind+"-"+e.Name())
			if err := os.Rename(dir, gone); err != nil {
				problems = append(problems, err)
				continue
			}
			freed += size
		}
	}
	entries, err := os.ReadDir(s.path("tmp"))
	problems = append(problems, err)
	for _, e := range entries {
		problems = append(problems, os.RemoveAll(s.path("tmp", e.Name())))
	}
	if err := errors.Join(problems...); err != nil {
		return freed, fmt.Errorf("cannot remove unused layers: %w", err)
	}
	return freed, nil
}
