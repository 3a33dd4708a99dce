package unitlink

import (
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"legion.dev/legion/internal/unitfile"
)

// Mode says what of a preset is carried out.
type Mode string

// The modes of preset; empty is full.
const (
	Full        Mode = "full"
	EnableOnly  Mode = "enable-only"
	DisableOnly Mode = "disable-only"
)

// rule is one line of a preset file.
type rule struct {
	enable    bool
	pattern   string
	instances []string
}

type policy []rule

// presets reads the policy: systemd.preset(5).
func (t *Tree) presets() policy {
	files := map[string]string{}
	for _, dir := range presetDirs {
		entries, _ := os.ReadDir(t.at(dir))
		for _, e := range entries {
			if _, taken := files[e.Name()]; !taken && strings.HasSuffix(e.Name(), ".preset") {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	var p policy
	for _, n := range names {
		data, err := os.ReadFile(t.at(files[n]))
		if err != nil {
			continue
		}
		for _, l := range lines(data) {
			if f := strings.Fields(l); len(f) > 1 && (f[0] == "enable" || f[0] == "disable") {
				p = append(p, rule{f[0] == "enable", f[1], f[2:]})
			}
		}
	}
	return p
}

// find gives the rule of a unit, nil for none: then it is enabled.
func (p policy) find(name string) *rule {
	for i, r := range p {
		if ok, _ := path.Match(r.pattern, name); ok {
			return &p[i]
		}
	}
	return nil
}

func (p policy) word(name string) string {
	if r := p.find(name); r != nil && !r.enable {
		return "disabled"
	}
	return "enabled"
}

// PresetOf is what the policy says of a unit: "enabled" or "disabled".
func (t *Tree) PresetOf(name string) string { return t.presets().word(name) }

// Preset enables or disables the units as the policy says.
func (t *Tree) Preset(names []string, mode Mode, h How) ([]Change, error) {
	p := t.presets()
	var changes []Change
	var on, off []string
	for _, name := range names {
		if _, err := t.find(name); err != nil {
			return nil, err
		}
		r := p.find(name)
		switch {
		case r != nil && !r.enable:
			off = append(off, name)
		case r != nil && len(r.instances) > 0 && unitfile.ValidName(name, unitfile.Template):
			for _, i := range r.instances {
				if instance, err := unitfile.ReplaceInstance(name, i); err == nil {
					on = append(on, instance)
				}
			}
		default:
			on = append(on, name)
		}
	}
	if mode != EnableOnly && len(off) > 0 {
		c, err := t.Disable(off, h)
		changes = append(changes, c...)
		if err != nil {
			return changes, err
		}
	}
	if mode != DisableOnly && len(on) > 0 {
		// A preset decides what is linked: what else has the name gives way.
		c, _, err := t.Enable(on, How{Runtime: h.Runtime, Force: true})
		changes = append(changes, c...)
		if err != nil {
			return changes, err
		}
	}
	return changes, nil
}
