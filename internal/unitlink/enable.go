package unitlink

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"legion.dev/legion/internal/unitfile"
)

// How says where links are made, and over what.
type How struct {
	// Runtime: until the next boot.
	Runtime bool
	// Force replaces a link that points elsewhere.
	Force bool
}

// dir is the directory of links, without Root.
func (t *Tree) dir(h How) (string, error) {
	switch {
	case !h.Runtime:
		return t.Config, nil
	case t.Runtime == "":
		return "", fmt.Errorf("no directory of the unit path (%s) is for links until the next boot; leave --runtime out", strings.Join(t.Paths, ", "))
	}
	return t.Runtime, nil
}

// Enable makes the links that the [Install] sections of the units ask for, and
// those of the units that Also= names. none are the units whose [Install]
// section asks for nothing. Changes are told even with an error.
func (t *Tree) Enable(names []string, h How) (changes []Change, none []string, err error) {
	dir, err := t.dir(h)
	if err != nil {
		return nil, nil, err
	}
	defer t.forget()
	units, err := t.closure(names)
	if err != nil {
		return nil, nil, err
	}
	for _, u := range units {
		if u.Masked != "" {
			return nil, nil, fmt.Errorf("unit file %s %w", filepath.Join(u.Masked, u.Name), ErrMasked)
		}
	}
	for _, u := range units {
		c, err := t.enable(u, dir, h)
		changes = append(changes, c...)
		if err != nil {
			return changes, none, err
		}
		if !u.rules() && len(u.Also) == 0 && slices.Contains(names, u.Name) {
			none = append(none, u.Name)
		}
	}
	return changes, none, nil
}

// closure adds the units that Also= names.
func (t *Tree) closure(names []string) ([]*Unit, error) {
	var units []*Unit
	seen := map[string]bool{}
	for queue := slices.Clone(names); len(queue) > 0; queue = queue[1:] {
		if seen[queue[0]] {
			continue
		}
		seen[queue[0]] = true
		u, err := t.Find(queue[0])
		if err != nil {
			return nil, err
		}
		units = append(units, u)
		also, err := t.expand(u, u.Name, u.Also)
		if err != nil {
			return nil, err
		}
		queue = append(queue, also...)
	}
	return units, nil
}

func (t *Tree) enable(u *Unit, dir string, h How) ([]Change, error) {
	var changes []Change
	name := u.Name
	if unitfile.ValidName(name, unitfile.Template) && u.DefaultInstance != "" {
		name, _ = unitfile.ReplaceInstance(name, u.DefaultInstance)
	}
	aliases, err := t.expand(u, name, u.Aliases)
	if err != nil {
		return nil, err
	}
	for _, alias := range aliases {
		if filepath.Ext(alias) != filepath.Ext(name) {
			return changes, fmt.Errorf("cannot make %s an alias of %s: they are of different types", alias, name)
		}
		if alias == u.Name {
			continue
		}
		if err := t.link(filepath.Join(dir, alias), u.Path, h.Force, &changes); err != nil {
			return changes, err
		}
	}
	for _, kind := range []struct {
		suffix string
		by     []string
	}{{".wants", u.WantedBy}, {".requires", u.RequiredBy}, {".upholds", u.UpheldBy}} {
		if len(kind.by) > 0 && unitfile.ValidName(name, unitfile.Template) {
			return changes, fmt.Errorf("%s is a template without DefaultInstance=: name an instance, as %s", name, strings.Replace(name, "@.", "@NAME.", 1))
		}
		targets, err := t.expand(u, name, kind.by)
		if err != nil {
			return changes, err
		}
		for _, target := range targets {
			// A link that is there is left, wherever it points to: its name counts.
			if err := t.link(filepath.Join(dir, target+kind.suffix, name), u.Path, true, &changes); err != nil {
				return changes, err
			}
		}
	}
	return changes, nil
}

// AddTo links units into a directory of a target, which then wants or requires
// them: kind is "wants" or "requires".
func (t *Tree) AddTo(target, kind string, names []string, h How) (changes []Change, err error) {
	dir, err := t.dir(h)
	if err != nil {
		return nil, err
	}
	defer t.forget()
	if _, err := t.Find(target); err != nil {
		return nil, err
	}
	for _, name := range names {
		u, err := t.Find(name)
		switch {
		case err != nil:
			return changes, err
		case u.Masked != "":
			return changes, fmt.Errorf("unit file %s %w", filepath.Join(u.Masked, u.Name), ErrMasked)
		}
		if err := t.link(filepath.Join(dir, target+"."+kind, name), u.Path, true, &changes); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// link makes a link from path to target unless it is there.
func (t *Tree) link(path, target string, force bool, changes *[]Change) error {
	full := t.at(path)
	if fi, err := os.Lstat(full); err == nil {
		if fi.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("file %s already exists", path)
		}
		to, err := os.Readlink(full)
		if err != nil {
			return fmt.Errorf("cannot read the link: %w", err)
		}
		if t.same(path, to, target) {
			return nil
		}
		if !force {
			return fmt.Errorf("file %s already exists and is a symlink to %s", path, to)
		}
	}
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of links: %w", err)
	}
	// Made under another name and then renamed: at any moment the link is as it
	// was or as it shall be.
	temporary := filepath.Join(filepath.Dir(full), fmt.Sprintf(".#%s.%d", filepath.Base(full), os.Getpid()))
	_ = os.Remove(temporary)
	if err := os.Symlink(target, temporary); err != nil {
		return fmt.Errorf("cannot make the link %s: %w", path, err)
	}
	if err := os.Rename(temporary, full); err != nil {
		_ = os.Remove(temporary)
		return fmt.Errorf("cannot make the link %s: %w", path, err)
	}
	*changes = append(*changes, Change{full, target})
	return nil
}

// same says whether a link leads to the target already, maybe by another name
// of the directory (/lib is /usr/lib).
func (t *Tree) same(path, to, target string) bool {
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	if to == target {
		return true
	}
	if filepath.Base(to) != filepath.Base(target) || target == os.DevNull || to == os.DevNull {
		return false
	}
	a, err := os.Stat(t.at(to))
	if err != nil {
		return false
	}
	b, err := os.Stat(t.at(target))
	return err == nil && os.SameFile(a, b)
}

// Disable removes every link to the units, by whatever name, and to those that
// Also= names. A unit without a file may have links, too.
func (t *Tree) Disable(names []string, h How) ([]Change, error) {
	dir, err := t.dir(h)
	if err != nil {
		return nil, err
	}
	defer t.forget()
	gone := slices.Clone(names)
	for i := 0; i < len(gone); i++ {
		u, err := t.Find(gone[i])
		switch {
		case errors.Is(err, ErrNotFound) && t.named(gone[i]):
			continue
		case err != nil:
			return nil, err
		}
		if !slices.Contains(gone, u.Name) {
			gone = append(gone, u.Name)
		}
		for _, also := range u.Also {
			if text, err := t.Options.WithDefaults().Expand(u.Name, u.Path, also); err == nil && !slices.Contains(gone, text) {
				if _, err := t.find(text); err == nil {
					gone = append(gone, text)
				}
			}
		}
	}
	return t.unlink(dir, gone)
}

// named says whether there is a link of that name.
func (t *Tree) named(name string) bool {
	return slices.ContainsFunc(t.index(), func(l link) bool { return l.name == name })
}

// unlink removes the links in dir that lead to one of the units, and then
// those that led to the aliases removed.
func (t *Tree) unlink(dir string, gone []string) ([]Change, error) {
	var changes []Change
	for again := true; again; {
		again = false
		t.forget()
		for _, l := range t.index() {
			if l.dir != dir || l.to == os.DevNull || !leads(l, gone) {
				continue
			}
			path := filepath.Join(dir, l.owner, l.name)
			if err := os.Remove(t.at(path)); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				return changes, fmt.Errorf("cannot remove the link: %w", err)
			}
			if l.owner != "" {
				_ = os.Remove(t.at(filepath.Join(dir, l.owner))) // if it is empty now
			}
			changes = append(changes, Change{Link: t.at(path)})
			if !slices.Contains(gone, l.name) {
				gone = append(gone, l.name)
				again = true
			}
		}
	}
	return changes, nil
}

func leads(l link, names []string) bool {
	return slices.ContainsFunc(names, func(n string) bool {
		if l.name == n || filepath.Base(l.to) == n && !instantiated(l.name, n) {
			return true
		}
		template, err := unitfile.TemplateOf(l.name)
		return err == nil && template == n
	})
}

// instantiated: the link is an instance, the unit asked for its template; the
// name decides then.
func instantiated(name, template string) bool {
	return unitfile.ValidName(name, unitfile.Instance) && unitfile.ValidName(template, unitfile.Template)
}

// Link makes a unit file outside of the unit path known by a link.
func (t *Tree) Link(path string, h How) ([]Change, error) {
	dir, err := t.dir(h)
	if err != nil {
		return nil, err
	}
	defer t.forget()
	name := filepath.Base(path)
	fi, err := os.Stat(t.at(path))
	switch {
	case !filepath.IsAbs(path) || !unitfile.ValidName(name, unitfile.AnyName):
		return nil, fmt.Errorf("%q is not the absolute path of a unit file", path)
	case err != nil:
		return nil, fmt.Errorf("cannot link %s: %w", path, err)
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("cannot link %s: it is not a regular file", path)
	case t.inPath(filepath.Dir(path)):
		return nil, nil // it is known already
	}
	var changes []Change
	err = t.link(filepath.Join(dir, name), filepath.Clean(path), h.Force, &changes)
	return changes, err
}

// Mask makes the units impossible to start. missing are those that have no
// file now; they are masked all the same.
func (t *Tree) Mask(names []string, h How) (changes []Change, missing []string, err error) {
	dir, err := t.dir(h)
	if err != nil {
		return nil, nil, err
	}
	defer t.forget()
	for _, name := range names {
		if !unitfile.ValidName(name, unitfile.AnyName) {
			return changes, missing, fmt.Errorf("%q is not the name of a unit", name)
		}
		if _, err := t.find(name); errors.Is(err, ErrNotFound) {
			missing = append(missing, name)
		}
		if err := t.link(filepath.Join(dir, name), os.DevNull, h.Force, &changes); err != nil {
			return changes, missing, err
		}
	}
	return changes, missing, nil
}

// Unmask takes masks away.
func (t *Tree) Unmask(names []string, h How) ([]Change, error) {
	dir, err := t.dir(h)
	if err != nil {
		return nil, err
	}
	defer t.forget()
	var changes []Change
	for _, name := range names {
		if !unitfile.ValidName(name, unitfile.AnyName) {
			return changes, fmt.Errorf("%q is not the name of a unit", name)
		}
		path := filepath.Join(dir, name)
		fi, err := os.Lstat(t.at(path))
		if err != nil {
			continue
		}
		to, _ := os.Readlink(t.at(path))
		if to != os.DevNull && (!fi.Mode().IsRegular() || fi.Size() > 0) {
			continue
		}
		if err := os.Remove(t.at(path)); err != nil {
			return changes, fmt.Errorf("cannot remove the mask: %w", err)
		}
		changes = append(changes, Change{Link: t.at(path)})
	}
	return changes, nil
}

// SetDefault makes the target the one that is started at boot.
func (t *Tree) SetDefault(name string) ([]Change, error) {
	defer t.forget()
	u, err := t.Find(name)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(name) != ".target" {
		return nil, fmt.Errorf("%s is not a target", name)
	}
	var changes []Change
	err = t.link(filepath.Join(t.Config, "default.target"), u.Path, true, &changes)
	return changes, err
}

// File is the path of a file of the tree, Root included.
func (t *Tree) File(path string) string { return t.at(path) }
