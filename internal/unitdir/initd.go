package unitdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"legion.dev/legion/internal/initd"
)

// scripts makes units of the init.d scripts whose names no unit file has.
func (l *loader) scripts() {
	dir := l.opts.Initd
	if dir == "" {
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.problem(dir, 0, "cannot read the directory of init.d scripts: %v", cause(err))
		}
		return
	}
	links := runlevels(filepath.Dir(dir))
	var scripts []initd.Script
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 || initd.Ignored(e.Name()) {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			l.problem(path, 0, "cannot read the script: %v", cause(err))
			continue
		}
		scripts = append(scripts, initd.Script{Path: path, Text: string(text), Links: links[e.Name()]})
	}
	units, problems := initd.Units(scripts, func(name string) bool { return l.seen(name) || systemdOwn(name) })
	for _, err := range problems {
		l.problem(dir, 0, "%v", err)
	}
	l.made = map[string]string{}
	for _, u := range units {
		l.files[u.Name], l.made[u.Path] = u.Path, u.Text
		for _, a := range u.Aliases {
			l.aliases[a] = u.Name
		}
		for _, target := range u.WantedBy {
			if !slices.Contains(l.wants[target], u.Name) {
				l.wants[target] = append(l.wants[target], u.Name)
			}
		}
	}
}

// runlevels lists the links to each script: "rc2.d/S01foo".
func runlevels(dir string) map[string][]string {
	found, _ := filepath.Glob(filepath.Join(dir, "rc[0-6].d", "[SK][0-9][0-9]*")) // the pattern is right
	sort.Strings(found)
	links := map[string][]string{}
	for _, path := range found {
		name := filepath.Base(path)[3:]
		if to, err := os.Readlink(path); err == nil {
			name = filepath.Base(to)
		}
		links[name] = append(links[name], filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path)))
	}
	return links
}
