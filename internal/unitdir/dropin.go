package unitdir

import (
	"os"
	"path/filepath"
	"sort"
	"strings"

	"legion.dev/legion/internal/unitfile"
)

// dropins lists a unit's drop-in files in the order in which they apply: by
// file name, whatever directory they are in. Of files with the same name the
// one of the more specific directory wins, then that of the first path; a link
// to /dev/null takes the name away (systemd.unit(5)).
func (l *loader) dropins(name string) []string {
	if len(l.dropped) == 0 {
		return nil
	}
	byName := map[string]string{}
	for _, d := range dropinDirs(name) {
		for _, dir := range l.dropped[d] {
			entries, err := os.ReadDir(dir)
			if err != nil {
				continue // no directory
			}
			for _, e := range entries {
				if _, taken := byName[e.Name()]; !taken && strings.HasSuffix(e.Name(), ".conf") {
					byName[e.Name()] = filepath.Join(dir, e.Name())
				}
			}
		}
	}
	var names []string
	for n, path := range byName {
		if to, err := os.Readlink(path); err == nil && to == os.DevNull {
			continue
		}
		names = append(names, n)
	}
	sort.Strings(names)
	for i, n := range names {
		names[i] = byName[n]
	}
	return names
}

// dropinDirs names the directories of drop-ins, the most specific first: the
// unit's, its template's, those of its prefixes cut at dashes, the type's.
func dropinDirs(name string) []string {
	prefix, _, suffix, kind := unitfile.ParseName(name)
	out := []string{name + ".d"}
	if kind == unitfile.Instance {
		out = append(out, prefix+"@"+suffix+".d")
	}
	for p := prefix; ; {
		i := strings.LastIndexByte(strings.TrimRight(p, "-"), '-')
		if i < 0 {
			break
		}
		p = p[:i+1]
		if kind == unitfile.Instance {
			out = append(out, p+"@"+suffix+".d")
		}
		out = append(out, p+suffix+".d")
	}
	return append(out, suffix[1:]+".d")
}
