package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A line longer than this is shipped in pieces.
const maxLine = 64 << 10

// A batch is shipped when it holds this much.
const (
	batchLines = 1000
	batchBytes = 1 << 20
)

// rescanEvery finds what inotify(7) does not tell: directories that appear, and
// events that were lost while the queue was full.
const rescanEvery = 5 * time.Second

// identity names a file whatever its path is.
type identity struct{ dev, ino uint64 }

// tailed is one file that is being followed.
type tailed struct {
	identity
	path   string
	file   *os.File
	offset int64 // up to here lines were shipped
	// gone: the path leads elsewhere by now; closed once it has been quiet.
	gone bool
}

// follower reads all files and ships what they get, in one loop.
type follower struct {
	config
	shipper    *shipper
	checkpoint *checkpoint
	watcher    *fsnotify.Watcher
	watched    map[string]bool
	files      map[identity]*tailed
	refused    map[string]bool // said once that they cannot be read
	first      bool            // no checkpoint: files that are there are not new
	started    chan struct{}   // closed when the files that were there are known
}

func newFollower(c config) (*follower, error) {
	for _, g := range c.files {
		if _, err := filepath.Match(g, ""); err != nil {
			return nil, fmt.Errorf("--files %q: %w", g, err)
		}
	}
	cp, existed, err := openCheckpoint(c.checkpoint)
	if err != nil {
		return nil, err
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("cannot watch files: %w", err)
	}
	return &follower{
		config: c, shipper: &shipper{url: c.to}, checkpoint: cp, watcher: w,
		watched: map[string]bool{}, files: map[identity]*tailed{}, refused: map[string]bool{}, first: !existed, started: make(chan struct{}),
	}, nil
}

func (f *follower) close() {
	_ = f.watcher.Close()
	for _, t := range f.files {
		_ = t.file.Close()
	}
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) error {
	if !f.first {
		f.resumeRotated()
	}
	f.scan()
	f.first = false
	if err := f.checkpoint.save(); err != nil {
		return err
	}
	close(f.started)
	ticker := time.NewTicker(rescanEvery)
	defer ticker.Stop()
	for {
		if err := f.drain(ctx); err != nil {
			if ctx.Err() != nil {
				return f.checkpoint.save() // asked to end
			}
			return err
		}
		if err := f.wait(ctx, ticker.C); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return f.checkpoint.save()
		}
	}
}

// wait returns when there may be something to read.
func (f *follower) wait(ctx context.Context, tick <-chan time.Time) error {
	select {
	case <-ctx.Done():
	case <-tick:
		f.scan()
	case ev, ok := <-f.watcher.Events:
		if !ok {
			return errors.New("the watch on the files ended")
		}
		if ev.Has(fsnotify.Create) || ev.Has(fsnotify.Rename) || ev.Has(fsnotify.Remove) {
			f.scan()
		}
		f.swallow()
	case err := <-f.watcher.Errors:
		log.Printf("watch: %v", err) // an overflow: look at everything
		f.scan()
	}
	return nil
}

// swallow takes the events that are there already: one look at the files
// answers all of them.
func (f *follower) swallow() {
	for {
		select {
		case ev := <-f.watcher.Events:
			if ev.Has(fsnotify.Create) || ev.Has(fsnotify.Rename) || ev.Has(fsnotify.Remove) {
				f.scan()
			}
		default:
			return
		}
	}
}

// scan finds files that the patterns match by now, and those that they do not
// match any more.
func (f *follower) scan() {
	at := map[identity]bool{}
	for _, g := range f.config.files {
		f.watchDir(filepath.Dir(g))
		paths, _ := filepath.Glob(g)
		for _, path := range paths {
			f.watchDir(filepath.Dir(path))
			st, err := os.Stat(path)
			if err != nil || !st.Mode().IsRegular() {
				continue
			}
			id := identityOf(st)
			at[id] = true
			if t := f.files[id]; t != nil {
				t.path, t.gone = path, false
				continue
			}
			f.open(path, st)
		}
	}
	for id, t := range f.files {
		if at[id] {
			continue
		}
		if !t.gone {
			t.gone = true // one more round, its writer may not have noticed yet
			continue
		}
		if st, err := t.file.Stat(); err == nil && st.Size() > t.offset {
			continue
		}
		_ = t.file.Close()
		delete(f.files, id)
		f.checkpoint.forget(id)
	}
}

func (f *follower) watchDir(dir string) {
	if f.watched[dir] || strings.ContainsAny(dir, "*?[") {
		return
	}
	err := f.watcher.Add(dir)
	if err == nil {
		f.watched[dir] = true
	} else if !errors.Is(err, fs.ErrNotExist) && !f.refused[dir] {
		f.refused[dir] = true
		log.Printf("cannot watch %s, looking at it every %s: %v", dir, rescanEvery, err)
	}
}

// open begins to follow a file, from where the checkpoint says.
func (f *follower) open(path string, st fs.FileInfo) {
	file, err := os.Open(path)
	if err != nil {
		if !f.refused[path] {
			f.refused[path] = true
			log.Printf("not followed: %v", err)
		}
		return
	}
	id := identityOf(st)
	t := &tailed{identity: id, path: path, file: file}
	if offset, ok := f.checkpoint.find(id, file); ok {
		t.offset = offset
	} else if f.first && f.fromEnd {
		t.offset = lastLineEnd(file, st.Size())
		f.checkpoint.keep(t)
	}
	f.files[id] = t
}

// resumeRotated follows to their end the files that were renamed while nobody
// was looking: they are found by their identity in the same directory.
func (f *follower) resumeRotated() {
	for id, e := range f.checkpoint.entries() {
		if st, err := os.Stat(e.Path); err == nil && identityOf(st) == id {
			continue
		}
		siblings, _ := os.ReadDir(filepath.Dir(e.Path))
		for _, s := range siblings {
			path := filepath.Join(filepath.Dir(e.Path), s.Name())
			if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && identityOf(st) == id {
				f.open(path, st)
			}
		}
	}
}

// drain ships all complete lines that the files hold.
func (f *follower) drain(ctx context.Context) error {
	for {
		var batch []line
		size := 0
		ends := map[*tailed]int64{}
		for _, t := range f.files {
			for size < batchBytes && len(batch) < batchLines {
				from, ok := ends[t]
				if !ok {
					from = f.begin(t)
				}
				lines, end, err := readLines(t.file, from, t.gone)
				if err != nil {
					log.Printf("cannot read %s: %v", t.path, err)
				}
				if end == from {
					break
				}
				now := time.Now().UTC()
				for _, text := range lines {
					batch = append(batch, line{f.node, t.path, now, text})
					size += len(text)
				}
				ends[t] = end
			}
		}
		if len(ends) == 0 {
			return nil
		}
		if len(batch) > 0 {
			if err := f.shipper.ship(ctx, batch); err != nil {
				return err
			}
		}
		for t, end := range ends {
			t.offset = end
			f.checkpoint.keep(t)
		}
		if err := f.checkpoint.save(); err != nil {
			return err
		}
	}
}

// begin is where to read on: at the beginning again if the file was truncated.
func (f *follower) begin(t *tailed) int64 {
	if st, err := t.file.Stat(); err == nil && st.Size() < t.offset {
		t.offset = 0
		f.checkpoint.keep(t)
	}
	return t.offset
}

// readLines reads complete lines from an offset and says where they end. At the
// end of a file that nobody writes to any more, and in lines that are too long,
// an incomplete line counts as a line.
func readLines(file io.ReaderAt, from int64, last bool) ([]string, int64, error) {
	buf := make([]byte, maxLine)
	n, err := file.ReadAt(buf, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, from, err
	}
	buf = buf[:n]
	end := bytes.LastIndexByte(buf, '\n') + 1
	if end == 0 && n > 0 && (n == maxLine || last) {
		return []string{string(buf)}, from + int64(n), nil
	}
	var lines []string
	for text := range bytes.Lines(buf[:end]) {
		lines = append(lines, string(bytes.TrimRight(text, "\r\n")))
	}
	return lines, from + int64(end), nil
}

// lastLineEnd is where the last complete line of a file ends.
func lastLineEnd(file io.ReaderAt, size int64) int64 {
	from := max(0, size-maxLine)
	buf := make([]byte, size-from)
	if _, err := file.ReadAt(buf, from); err != nil && !errors.Is(err, io.EOF) {
		return size
	}
	if i := bytes.LastIndexByte(buf, '\n'); i >= 0 {
		return from + int64(i) + 1
	}
	return from
}

func identityOf(st fs.FileInfo) identity {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{uint64(sys.Dev), sys.Ino}
}
