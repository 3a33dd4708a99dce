package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// Usage is how much of its disk a directory takes, in bytes: blocks as they are
// allotted, a file with several names once, nothing of what is mounted below.
// What goes away meanwhile does not count.
func Usage(ctx context.Context, dir string) (int64, error) {
	type file struct{ device, inode uint64 }
	counted, bytes, device := map[file]bool{}, int64(0), uint64(0)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return gone(err)
		}
		info, err := d.Info()
		if err != nil {
			return gone(err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if path == dir {
			device = st.Dev
		}
		if st.Dev != device {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if counted[file{st.Dev, st.Ino}] {
				return nil
			}
			counted[file{st.Dev, st.Ino}] = true
		}
		bytes += st.Blocks * 512
		return nil
	})
	return bytes, err
}

func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
