package unitlink

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

// Editable is the file that an administrator's change of a unit belongs in, and
// what it says now: the named drop-in, or with whole the unit file in Config,
// where it goes before the distribution's, which it begins as. How.Force: the
// unit need not exist.
func (t *Tree) Editable(name, dropin string, whole bool, h How) (path string, text []byte, err error) {
	dir, err := t.dir(h)
	if err != nil {
		return "", nil, err
	}
	u, err := t.find(name)
	switch {
	case errors.Is(err, ErrNotFound) && h.Force:
		u = &Unit{Name: name}
	case err != nil:
		return "", nil, err
	case u.Masked != "":
		return "", nil, fmt.Errorf("unit file %s %w", name, ErrMasked)
	}
	from := u.Path
	path = filepath.Join(dir, u.Name)
	if !whole {
		if dropin == "" || dropin != filepath.Base(dropin) || strings.HasPrefix(dropin, ".") {
			return "", nil, fmt.Errorf("%q cannot be the name of a drop-in", dropin)
		}
		path = filepath.Join(path+".d", strings.TrimSuffix(dropin, ".conf")+".conf")
		from = path
	} else if _, err := os.Stat(t.at(path)); err == nil {
		from = path
	}
	if from == "" {
		return path, nil, nil
	}
	text, err = os.ReadFile(t.at(from))
	if errors.Is(err, os.ErrNotExist) && from == path {
		err = nil
	}
	return path, text, err
}

// Replace writes a file of Editable as a whole.
func (t *Tree) Replace(path string, text []byte) error {
	defer t.forget()
	dir := filepath.Dir(t.at(path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".#"+filepath.Base(path))
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), t.at(path))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// Revert takes away what Config and Runtime say of the units: their drop-ins,
// masks, and files that go before one of the distribution's. A unit file that
// is nowhere else stays.
func (t *Tree) Revert(names []string) ([]Change, error) {
	defer t.forget()
	var changes []Change
	for _, name := range names {
		if !unitfile.ValidName(name, unitfile.AnyName) {
			return changes, fmt.Errorf("%q is not the name of a unit", name)
		}
		for _, dir := range t.own() {
			for _, path := range t.overrides(dir, name) {
				if err := os.Remove(t.at(path)); err != nil {
					return changes, fmt.Errorf("cannot revert %s: %w", name, err)
				}
				changes = append(changes, Change{Link: t.at(path)})
			}
		}
	}
	return changes, nil
}

// own are the directories of the administrator.
func (t *Tree) own() []string {
	if t.Runtime == "" {
		return []string{t.Config, unitdir.Control(t.Config)}
	}
	return []string{t.Config, unitdir.Control(t.Config), t.Runtime, unitdir.Control(t.Runtime)}
}

// overrides are the files in one directory that change a unit, what is in a
// directory before it.
func (t *Tree) overrides(dir, name string) []string {
	var out []string
	drop := filepath.Join(dir, name+".d")
	if fi, err := os.Lstat(t.at(drop)); err == nil && fi.IsDir() {
		entries, _ := os.ReadDir(t.at(drop))
		for _, e := range entries {
			out = append(out, filepath.Join(drop, e.Name()))
		}
		out = append(out, drop)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(t.at(path)); err != nil {
		return out
	}
	to, _ := os.Readlink(t.at(path))
	if to == os.DevNull || t.shipped(name) {
		out = append(out, path)
	}
	return out
}

// shipped says whether a directory that is not the administrator's has the unit.
func (t *Tree) shipped(name string) bool {
	return slices.ContainsFunc(t.Paths, func(dir string) bool {
		if slices.Contains(t.own(), dir) {
			return false
		}
		_, err := os.Lstat(t.at(filepath.Join(dir, name)))
		return err == nil
	})
}
