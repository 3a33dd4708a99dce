// Command cleanup removes old files from directories, again and again.
//
// It removes regular files only, never leaves the directories it was given (no
// symbolic link is followed, no other filesystem entered), and says of each file
// what it did. With --dry-run it only says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

type config struct {
	dirs      dirs
	match     string
	olderThan time.Duration
	dryRun    bool
}

// dirs is a flag that may be given more than once.
type dirs []string

func (d *dirs) String() string     { return strings.Join(*d, " ") }
func (d *dirs) Set(s string) error { *d = append(*d, s); return nil }

func main() {
	log.SetFlags(0)
	var c config
	flag.Var(&c.dirs, "dir", "`directory` to clean (repeatable)")
	flag.StringVar(&c.match, "match", "*", "remove files whose name matches this `pattern`")
	flag.DurationVar(&c.olderThan, "older-than", 7*24*time.Hour, "remove files that were not written to for so long")
	flag.BoolVar(&c.dryRun, "dry-run", false, "say what would be removed, and remove nothing")
	once := flag.Bool("once", false, "clean once and end")
	interval := flag.Duration("interval", time.Hour, "the time between two rounds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := c.check(*interval); err != nil {
		log.Fatalf("cleanup: %v", err)
	}
	for {
		err := c.round(ctx, time.Now())
		if err != nil {
			log.Printf("cleanup: %v", err)
		}
		if *once {
			if err != nil {
				os.Exit(1)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(*interval):
		}
	}
}

// check refuses what is most likely a mistake.
func (c config) check(interval time.Duration) error {
	if len(c.dirs) == 0 {
		return errors.New("name a directory to clean with --dir")
	}
	for _, dir := range c.dirs {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) == "/" {
			return fmt.Errorf("--dir %q: give the full path of a directory, and not of the whole machine", dir)
		}
	}
	if _, err := path.Match(c.match, ""); err != nil {
		return fmt.Errorf("--match %q: %w", c.match, err)
	}
	if c.olderThan <= 0 || interval <= 0 {
		return errors.New("--older-than and --interval must be more than nothing")
	}
	return nil
}

// tally counts one round.
type tally struct {
	files int
	bytes int64
}

// round cleans every directory. One that is not there is nothing to clean.
func (c config) round(ctx context.Context, now time.Time) error {
	var errs []error
	var t tally
	for _, dir := range c.dirs {
		root, err := os.OpenRoot(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		st, err := root.Stat(".")
		if err == nil {
			err = c.walk(ctx, root, dir, device(st), now, &t)
		}
		errs = append(errs, err, root.Close())
	}
	verb := "removed"
	if c.dryRun {
		verb = "would remove"
	}
	log.Printf("%s %d files, %d bytes", verb, t.files, t.bytes)
	return errors.Join(errs...)
}

// walk cleans one directory and those below it. Names are looked up below the
// open directory, so that nobody can lead it elsewhere meanwhile.
func (c config) walk(ctx context.Context, root *os.Root, name string, dev uint64, now time.Time, t *tally) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	entries, err := dir.ReadDir(-1)
	errs := []error{err, dir.Close()}
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		full := filepath.Join(name, e.Name())
		st, err := root.Lstat(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		switch {
		case st.IsDir() && device(st) == dev:
			errs = append(errs, c.enter(ctx, root, e.Name(), full, dev, now, t))
		case st.Mode().IsRegular():
			errs = append(errs, c.remove(root, e.Name(), full, st, now, t))
		}
	}
	return errors.Join(errs...)
}

func (c config) enter(ctx context.Context, root *os.Root, name, full string, dev uint64, now time.Time, t *tally) error {
	sub, err := root.OpenRoot(name)
	if err != nil {
		return err
	}
	return errors.Join(c.walk(ctx, sub, full, dev, now, t), sub.Close())
}

func (c config) remove(root *os.Root, name, full string, st fs.FileInfo, now time.Time, t *tally) error {
	if ok, _ := path.Match(c.match, name); !ok || now.Sub(st.ModTime()) < c.olderThan {
		return nil
	}
	age := now.Sub(st.ModTime()).Round(time.Minute)
	if c.dryRun {
		log.Printf("would remove %s (%d bytes, %s old)", full, st.Size(), age)
	} else {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		log.Printf("removed %s (%d bytes, %s old)", full, st.Size(), age)
	}
	t.files++
	t.bytes += st.Size()
	return nil
}

func device(st fs.FileInfo) uint64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(sys.Dev)
	}
	return 0
}
