package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
)

// entry remembers one file.
type entry struct {
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Path   string `json:"path"`
	Offset int64  `json:"offset"`
	// Head is a hash of the file's first bytes, HeadSize of them: a new file
	// may get the inode of one that was removed.
	Head     string `json:"head"`
	HeadSize int64  `json:"headSize"`
}

const headBytes = 256

// checkpoint is what was shipped, on disk.
type checkpoint struct {
	path  string
	files map[identity]entry
	dirty bool
}

func openCheckpoint(path string) (*checkpoint, bool, error) {
	c := &checkpoint{path: path, files: map[identity]entry{}, dirty: true}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, false, os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the checkpoint: %w", err)
	}
	var entries []entry
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, false, fmt.Errorf("cannot read the checkpoint %s: %w; remove it to begin anew", path, err)
	}
	for _, e := range entries {
		c.files[identity{e.Dev, e.Ino}] = e
	}
	return c, true, nil
}

func (c *checkpoint) entries() map[identity]entry { return maps.Clone(c.files) }

// find is where to go on with a file, if it is the one that is remembered.
func (c *checkpoint) find(id identity, file io.ReaderAt) (int64, bool) {
	e, ok := c.files[id]
	if !ok {
		return 0, false
	}
	if head(file, e.HeadSize) != e.Head {
		delete(c.files, id)
		return 0, false
	}
	return e.Offset, true
}

func (c *checkpoint) keep(t *tailed) {
	e := entry{Dev: t.dev, Ino: t.ino, Path: t.path, Offset: t.offset, HeadSize: min(t.offset, headBytes)}
	if old, ok := c.files[t.identity]; ok && old.HeadSize == e.HeadSize && old.Offset <= e.Offset {
		e.Head = old.Head
	} else {
		e.Head = head(t.file, e.HeadSize)
	}
	c.files[t.identity], c.dirty = e, true
}

func (c *checkpoint) forget(id identity) {
	delete(c.files, id)
	c.dirty = true
}

// save replaces the file as a whole.
func (c *checkpoint) save() error {
	if !c.dirty {
		return nil
	}
	entries := make([]entry, 0, len(c.files))
	for _, e := range c.files {
		entries = append(entries, e)
	}
	data, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.path), ".checkpoint-*")
	if err != nil {
		return fmt.Errorf("cannot write the checkpoint: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(data)
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), c.path)
	}
	if err != nil {
		return fmt.Errorf("cannot write the checkpoint %s: %w", c.path, err)
	}
	c.dirty = false
	return nil
}

func head(file io.ReaderAt, size int64) string {
	buf := make([]byte, size)
	n, _ := file.ReadAt(buf, 0)
	sum := sha256.Sum256(buf[:n])
	return hex.EncodeToString(sum[:8])
}
