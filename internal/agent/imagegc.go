package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/image"
)

// When images are removed: the kubelet's defaults
// (pkg/kubelet/apis/config/v1beta1/defaults.go).
const (
	collectEvery = 5 * time.Minute
	// highDisk is the share of the disk in use from which on images go, until
	// it is lowDisk.
	highDisk, lowDisk = 0.85, 0.80
	// youngest is how long an image stays in any case: its pod may be on the way.
	youngest = 2 * time.Minute
)

// collector removes images that no pod uses.
type collector struct {
	store *image.Store
	// used gives the IDs of the images that pods use, false for not known yet.
	used func(context.Context) (map[string]bool, bool)
	// disk gives the size of the store's disk and what is in use, in bytes.
	disk func(dir string) (size, inUse int64, err error)
	// age is as in Options.ImageAge.
	age time.Duration
	log *slog.Logger
}

func (c collector) run(ctx context.Context) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.collect(ctx); err != nil && ctx.Err() == nil {
				c.log.Warn("cannot remove unused images", "error", err)
			}
		}
	}
}

// collect removes what is too old, then as much as the disk needs.
func (c collector) collect(ctx context.Context) error {
	used, known := c.used(ctx)
	if !known {
		return nil
	}
	keep := func(i *image.Image) bool { return used[i.ID] }
	if c.age > 0 {
		if err := c.prune(ctx, image.Prune{Keep: keep, Unused: max(c.age, youngest)}, "their age"); err != nil {
			return err
		}
	}
	size, inUse, err := c.disk(c.store.Dir())
	if err != nil {
		return fmt.Errorf("look how full the disk is: %w", err)
	}
	if size <= 0 || float64(inUse) < highDisk*float64(size) {
		return nil
	}
	return c.prune(ctx, image.Prune{Keep: keep, Unused: youngest, Free: inUse - int64(lowDisk*float64(size))}, "a full disk")
}

func (c collector) prune(ctx context.Context, p image.Prune, why string) error {
	gone, err := c.store.Prune(ctx, p)
	if len(gone.Images) > 0 {
		c.log.Info("images were removed because of "+why, "images", len(gone.Images), "bytes", gone.Bytes)
	}
	return err
}

// usage is of the file system that holds dir.
func usage(dir string) (size, inUse int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	// What only root may use counts as in use, as for df(1).
	total := int64(st.Blocks-st.Bfree+st.Bavail) * st.Bsize
	return total, int64(st.Blocks-st.Bfree) * st.Bsize, nil
}
