// Package unitlink enables units: it makes and removes the links that [Install]
// sections ask for, masks and presets included, as systemctl(1) does. It works
// on files only, with or without a legiond, also below another root directory.
package unitlink

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

// Tree is the unit path of a machine, or of one that is unpacked below Root.
type Tree struct {
	// Root stands before every path; empty is the machine's own root.
	Root string
	// Paths are the directories of units as the machine sees them; the first
	// wins.
	Paths []string
	// Config and Runtime are the directories of Paths in which links are made:
	// to stay, and until the next boot. Runtime may be empty.
	Config, Runtime string
	// Options are what specifiers in [Install] stand for.
	Options unitfile.Options

	links []link // what is linked, read once
	read  bool
}

// Change is one thing that was done or found in the way.
type Change struct {
	// Link is the path that was made or removed, Root included.
	Link string
	// Target is what Link points to now; empty where it was removed.
	Target string
}

// String is systemctl's message.
func (c Change) String() string {
	if c.Target == "" {
		return fmt.Sprintf("Removed %q.", c.Link)
	}
	return fmt.Sprintf("Created symlink %s → %s.", c.Link, c.Target)
}

// ErrNotFound is the cause where a unit has no file.
var ErrNotFound = errors.New("does not exist")

// ErrMasked is the cause where a unit is masked.
var ErrMasked = errors.New("is masked")

// Unit is what the files say of a unit, [Install] included.
type Unit struct {
	Name string
	// Path is the fragment, without Root.
	Path string
	// Alias: the name is a link of the distribution's to another unit.
	Alias bool
	// Masked and Linked say in which directory a link makes it so.
	Masked, Linked string

	WantedBy, RequiredBy, UpheldBy []string
	Aliases, Also                  []string
	DefaultInstance                string
}

// rules says whether enabling the unit would make a link.
func (u *Unit) rules() bool {
	return len(u.WantedBy)+len(u.RequiredBy)+len(u.UpheldBy)+len(u.Aliases) > 0
}

func (t *Tree) at(path string) string { return filepath.Join("/", t.Root, path) }

// Find looks a unit up. A link in Config or Runtime to another name is
// followed; the Unit has that name then.
func (t *Tree) Find(name string) (*Unit, error) {
	u, err := t.find(name)
	if err != nil {
		return nil, err
	}
	if u.Masked == "" {
		err = t.install(u)
	}
	return u, err
}

func (t *Tree) find(name string) (*Unit, error) {
	if !unitfile.ValidName(name, unitfile.AnyName) {
		return nil, fmt.Errorf("%q is not the name of a unit", name)
	}
	for range 8 {
		u, follow, err := t.lookup(name)
		if err != nil || follow == "" {
			return u, err
		}
		name = follow
	}
	return nil, fmt.Errorf("the links of %s go round in a ring", name)
}

// lookup finds the file of one name, or the name that it is a link to.
func (t *Tree) lookup(name string) (u *Unit, follow string, err error) {
	names := []string{name}
	if template, err := unitfile.TemplateOf(name); err == nil && template != name {
		names = append(names, template)
	}
	for _, file := range names {
		for _, dir := range t.Paths {
			path := filepath.Join(dir, file)
			fi, err := os.Lstat(t.at(path))
			if err != nil {
				continue
			}
			u := &Unit{Name: name, Path: path}
			if fi.Mode()&fs.ModeSymlink == 0 {
				if fi.Mode().IsRegular() && fi.Size() == 0 {
					u.Masked = dir
				}
				return u, "", nil
			}
			to, err := os.Readlink(t.at(path))
			if err != nil {
				return nil, "", fmt.Errorf("cannot read the link: %w", err)
			}
			return t.linked(u, dir, file, to)
		}
	}
	return nil, "", fmt.Errorf("unit file %s %w", name, ErrNotFound)
}

func (t *Tree) linked(u *Unit, dir, file, to string) (*Unit, string, error) {
	if !filepath.IsAbs(to) {
		to = filepath.Join(dir, to)
	}
	base := filepath.Base(to)
	switch {
	case to == os.DevNull:
		u.Masked = dir
	case base != file && unitfile.ValidName(base, unitfile.AnyName):
		if instance := instanceOf(u.Name); instance != "" && file != u.Name {
			if name, err := unitfile.ReplaceInstance(base, instance); err == nil {
				base = name
			}
		}
		if dir == t.Config || dir == t.Runtime {
			return nil, base, nil
		}
		u.Alias = true
	case !t.inPath(filepath.Dir(to)):
		u.Linked = dir
		u.Path = filepath.Clean(to)
	}
	return u, "", nil
}

func (t *Tree) inPath(dir string) bool {
	if slices.Contains(t.Paths, filepath.Clean(dir)) {
		return true
	}
	fi, err := os.Stat(t.at(dir))
	return err == nil && slices.ContainsFunc(t.Paths, func(p string) bool {
		o, err := os.Stat(t.at(p))
		return err == nil && os.SameFile(fi, o)
	})
}

func instanceOf(name string) string {
	_, instance, _, _ := unitfile.ParseName(name)
	return instance
}

// install reads the [Install] section, drop-ins included.
func (t *Tree) install(u *Unit) error {
	rooted := make([]string, len(t.Paths))
	for i, p := range t.Paths {
		rooted[i] = t.at(p)
	}
	files := append([]string{t.at(u.Path)}, unitdir.Dropins(rooted, u.Name)...)
	for i, path := range files {
		data, err := os.ReadFile(path)
		if err != nil && i == 0 {
			return fmt.Errorf("cannot read the unit file: %w", err)
		}
		f, err := unitfile.Parse(path, data)
		if err != nil && i == 0 {
			return err
		}
		if err != nil {
			continue // legiond says what is wrong with it
		}
		for _, e := range f.Entries {
			if e.Section != "Install" {
				continue
			}
			if err := t.entry(u, e); err != nil {
				return fmt.Errorf("%s:%d: %s=: %w", e.File, e.Line, e.Key, err)
			}
		}
	}
	return nil
}

func (t *Tree) entry(u *Unit, e unitfile.Entry) error {
	to := map[string]*[]string{
		"WantedBy": &u.WantedBy, "RequiredBy": &u.RequiredBy, "UpheldBy": &u.UpheldBy, "Alias": &u.Aliases, "Also": &u.Also,
	}[e.Key]
	if e.Key == "DefaultInstance" {
		text, err := t.Options.WithDefaults().Expand(u.Name, u.Path, e.Value)
		if err == nil && !unitfile.ValidInstance(text) {
			err = fmt.Errorf("%q cannot be an instance", text)
		}
		u.DefaultInstance = text
		return err
	}
	if to == nil {
		return nil
	}
	if e.Value == "" {
		*to = nil
		return nil
	}
	words, err := unitfile.Split(e.Value)
	if err != nil {
		return err
	}
	for _, w := range words {
		if !slices.Contains(*to, w) {
			*to = append(*to, w)
		}
	}
	return nil
}

// expand fills in the specifiers of names for the unit that is enabled: for a
// template, its default instance.
func (t *Tree) expand(u *Unit, name string, list []string) ([]string, error) {
	var out []string
	for _, w := range list {
		text, err := t.Options.WithDefaults().Expand(name, u.Path, w)
		if err == nil && !unitfile.ValidName(text, unitfile.AnyName) {
			err = fmt.Errorf("%q is not the name of a unit", text)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: [Install] %q: %w", u.Path, strings.Join(list, " "), err)
		}
		out = append(out, text)
	}
	return out, nil
}
