package unitlink

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"legion.dev/legion/internal/unitfile"
)

// State is what is-enabled says of a unit; the names are systemctl's.
type State string

// The states of a unit file.
const (
	Enabled        State = "enabled"
	EnabledRuntime State = "enabled-runtime"
	Linked         State = "linked"
	LinkedRuntime  State = "linked-runtime"
	Alias          State = "alias"
	Masked         State = "masked"
	MaskedRuntime  State = "masked-runtime"
	Static         State = "static"
	Indirect       State = "indirect"
	Disabled       State = "disabled"
	Bad            State = "bad"
)

// OK says whether is-enabled counts the state as enabled.
func (s State) OK() bool {
	return slices.Contains([]State{Enabled, EnabledRuntime, Static, Alias, Indirect}, s)
}

// link is one link of the path that is a unit's name.
type link struct {
	dir   string // one of Paths
	owner string // "x.target.wants", or empty for an alias
	name  string
	to    string
}

func (t *Tree) forget() { t.read = false }

// index lists all links of the path, once until something changes.
func (t *Tree) index() []link {
	if t.read {
		return t.links
	}
	t.read, t.links = true, nil
	for _, dir := range t.Paths {
		t.scan(dir, "")
		entries, _ := os.ReadDir(t.at(dir))
		for _, e := range entries {
			switch filepath.Ext(e.Name()) {
			case ".wants", ".requires", ".upholds":
				t.scan(dir, e.Name())
			}
		}
	}
	return t.links
}

func (t *Tree) scan(dir, owner string) {
	entries, _ := os.ReadDir(t.at(filepath.Join(dir, owner))) // what is not there has no links
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 || !unitfile.ValidName(e.Name(), unitfile.AnyName) {
			continue
		}
		to, err := os.Readlink(t.at(filepath.Join(dir, owner, e.Name())))
		if err == nil {
			t.links = append(t.links, link{dir, owner, e.Name(), to})
		}
	}
}

// State tells whether a unit is enabled.
func (t *Tree) State(name string) (State, error) {
	if u, follow, err := t.lookup(name); err == nil && u == nil && unitfile.ValidName(follow, unitfile.AnyName) {
		return Alias, nil
	}
	u, err := t.Find(name)
	switch {
	case errors.Is(err, ErrNotFound):
		return "", err
	case err != nil:
		return Bad, nil
	}
	return t.state(u), nil
}

func (t *Tree) state(u *Unit) State {
	switch {
	case u.Masked != "" && u.Masked == t.Runtime:
		return MaskedRuntime
	case u.Masked != "":
		return Masked
	case u.Alias:
		return Alias
	}
	var runtime, elsewhere, instance bool
	for _, l := range t.index() {
		if l.to == os.DevNull {
			continue
		}
		switch t.counts(l, u) {
		case notAtAll:
			continue
		case asInstance:
			instance = instance || l.dir == t.Config || l.dir == t.Runtime
			continue
		}
		switch l.dir {
		case t.Config:
			return Enabled
		case t.Runtime:
			runtime = true
		default:
			elsewhere = true
		}
	}
	switch {
	case runtime:
		return EnabledRuntime
	case u.Linked != "" && u.Linked == t.Runtime:
		return LinkedRuntime
	case u.Linked != "":
		return Linked
	case elsewhere && u.rules():
		return Enabled
	case instance:
		return Indirect
	case u.rules():
		return Disabled
	case len(u.Also) > 0:
		return Indirect
	}
	return Static
}

type counting int

const (
	notAtAll counting = iota
	fully
	asInstance // of a template, and not the default one
)

// counts says whether a link enables the unit.
func (t *Tree) counts(l link, u *Unit) counting {
	if l.owner == "" {
		if l.name != u.Name && filepath.Base(l.to) == u.Name {
			return fully
		}
		return notAtAll
	}
	if l.name == u.Name {
		return fully
	}
	if template, err := unitfile.TemplateOf(l.name); err == nil && template == u.Name {
		if u.DefaultInstance != "" && instanceOf(l.name) == u.DefaultInstance {
			return fully
		}
		return asInstance
	}
	return notAtAll
}

// Targets are the links that enable a unit, without Root: what is-enabled
// --full shows.
func (t *Tree) Targets(u *Unit) []string {
	var out []string
	for _, l := range t.index() {
		if l.to != os.DevNull && t.counts(l, u) != notAtAll {
			out = append(out, filepath.Join(l.dir, l.owner, l.name))
		}
	}
	return out
}

// Listed is one line of list-unit-files.
type Listed struct {
	Name   string `json:"unit_file"`
	State  State  `json:"state"`
	Preset string `json:"preset,omitempty"`
}

// List tells of all unit files, by name.
func (t *Tree) List() []Listed {
	seen := map[string]bool{}
	for _, dir := range t.Paths {
		entries, _ := os.ReadDir(t.at(dir))
		for _, e := range entries {
			if unitfile.ValidName(e.Name(), unitfile.AnyName) && !e.IsDir() {
				seen[e.Name()] = true
			}
		}
	}
	presets := t.presets()
	out := []Listed{}
	for name := range seen {
		s, err := t.State(name)
		if err != nil {
			s = Bad
		}
		l := Listed{Name: name, State: s}
		switch l.State {
		case Enabled, EnabledRuntime, Disabled, Linked, LinkedRuntime, Indirect, Masked, MaskedRuntime:
			l.Preset = presets.word(name)
		}
		out = append(out, l)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Wanted are the units that links in directories of the given kind (".wants",
// ".requires") name for an owner.
func (t *Tree) Wanted(owner, kind string) []string {
	var out []string
	for _, l := range t.index() {
		if l.owner == owner+kind && !slices.Contains(out, l.name) {
			out = append(out, l.name)
		}
	}
	return out
}

// Root paths of presets; the first directory wins for files of the same name.
var presetDirs = []string{
	"/etc/systemd/system-preset", "/run/systemd/system-preset", "/usr/local/lib/systemd/system-preset",
	"/usr/lib/systemd/system-preset", "/lib/systemd/system-preset",
}

func lines(data []byte) []string { return strings.Split(string(data), "\n") }
