// Package unitdir finds unit files: it reads the directories of a unit path,
// with drop-ins, aliases, masks, templates and the links that enabling makes,
// and has package unitfile compile them.
package unitdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// Options say how to load.
type Options struct {
	unitfile.Options
	// Enabled: [Install] sections count as if each unit had been enabled. Else
	// they count where enabling has made a link in a .wants or .requires
	// directory, and the compiled WantedBy and RequiredBy hold only these.
	Enabled bool
	// Boot is the target that is started at boot; its group is marked. Empty
	// is "default.target".
	Boot string
	// Initd is a directory of init.d scripts, with the directories of the
	// runlevels (rc2.d …) beside it; empty reads none.
	Initd string
}

// Load compiles every unit of the path. In each matter the first directory
// wins. A unit that cannot be loaded is a problem, with its file and line, and
// keeps none of the others from being loaded.
func Load(paths []string, opts Options) (groups []service.Group, problems []service.Warning) {
	l := newLoader(paths, opts)
	l.scan()
	l.scripts()
	l.loadAll(l.names())
	l.pull()
	l.boot()
	groups = make([]service.Group, 0, len(l.groups))
	for _, name := range sortedKeys(l.groups) {
		groups = append(groups, *l.groups[name])
	}
	return groups, l.problems
}

// Find compiles one unit, which may be an instance of a template that nothing
// refers to. The error says where it was looked for.
func Find(paths []string, name string, opts Options) (service.Group, error) {
	l := newLoader(paths, opts)
	l.scan()
	l.scripts()
	if to, ok := l.aliases[name]; ok {
		name = to
	}
	l.problems = nil
	l.load(name)
	if g := l.groups[name]; g != nil {
		return *g, nil
	}
	switch {
	case len(l.problems) > 0:
		p := l.problems[0]
		return service.Group{}, &unitfile.Error{File: p.File, Line: p.Line, Text: p.Text}
	case systemdOwn(name):
		return service.Group{}, fmt.Errorf("%s is a part of systemd: Legion does that work itself or leaves it to the machine, and does not run it", name)
	case l.masked[name]:
		return service.Group{}, fmt.Errorf("%s is masked: its unit file is a link to /dev/null", name)
	default:
		return service.Group{}, fmt.Errorf("there is no %s in %s", name, strings.Join(paths, ", "))
	}
}

// loader carries one reading of the path.
type loader struct {
	made     map[string]string // script of init.d → text of its unit
	paths    []string
	opts     Options
	files    map[string]string   // unit → fragment
	aliases  map[string]string   // further name → unit
	masked   map[string]bool     // names that are linked to /dev/null, and systemd's own parts
	wants    map[string][]string // unit → what its .wants directories name
	requires map[string][]string
	groups   map[string]*service.Group
	tried    map[string]bool
	problems []service.Warning
	// dropped are the directories of drop-ins by name, in the order of paths.
	dropped map[string][]string
}

func newLoader(paths []string, opts Options) *loader {
	if opts.Boot == "" {
		opts.Boot = "default.target"
	}
	return &loader{
		paths: distinct(paths), opts: opts,
		files: map[string]string{}, aliases: map[string]string{}, masked: map[string]bool{},
		wants: map[string][]string{}, requires: map[string][]string{},
		groups: map[string]*service.Group{}, tried: map[string]bool{}, dropped: map[string][]string{},
	}
}

// distinct leaves out the directories that are earlier ones by another name, as
// /lib is /usr/lib.
func distinct(paths []string) []string {
	var out []string
	var seen []os.FileInfo
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err == nil && slices.ContainsFunc(seen, func(o os.FileInfo) bool { return os.SameFile(o, fi) }) {
			continue
		}
		if err == nil {
			seen = append(seen, fi)
		}
		out = append(out, p)
	}
	return out
}

func (l *loader) problem(file string, line int, format string, args ...any) {
	l.problems = append(l.problems, service.Warning{File: file, Line: line, Text: fmt.Sprintf(format, args...)})
}

// loaded are the types of unit that Legion has. All others (mounts, devices,
// slices …) it leaves to the machine.
var loaded = []string{".service", ".target", ".timer", ".path", ".socket"}

// scan lists the directories.
func (l *loader) scan() {
	for _, dir := range l.paths {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				l.problem(dir, 0, "cannot read the directory of units: %v", cause(err))
			}
			continue
		}
		for _, e := range entries {
			name := e.Name()
			suffix := filepath.Ext(name)
			switch {
			case suffix == ".wants" || suffix == ".requires":
				l.links(dir, name, suffix)
			case suffix == ".d":
				l.dropped[name] = append(l.dropped[name], filepath.Join(dir, name))
			case !unitfile.ValidName(name, unitfile.AnyName) || l.seen(name):
			case slices.Contains(loaded, suffix):
				l.file(dir, name, e)
			}
		}
	}
}

func (l *loader) seen(name string) bool {
	return l.files[name] != "" || l.aliases[name] != "" || l.masked[name]
}

// file takes one entry: a unit file, an alias or a mask.
func (l *loader) file(dir, name string, e fs.DirEntry) {
	path := filepath.Join(dir, name)
	if systemdOwn(name) {
		l.masked[name] = true
		return
	}
	if e.Type()&fs.ModeSymlink == 0 {
		l.files[name] = path
		return
	}
	to, err := os.Readlink(path)
	if err != nil {
		l.problem(path, 0, "cannot read the link: %v", cause(err))
		return
	}
	base := filepath.Base(to)
	switch {
	case to == os.DevNull || systemdOwn(base):
		l.masked[name] = true
	case base != name && unitfile.ValidName(base, unitfile.AnyName) && filepath.Ext(base) == filepath.Ext(name):
		l.aliases[name] = base
	default:
		// A link to the same name elsewhere is the file itself.
		l.files[name] = path
	}
}

// links reads a directory "x.target.wants": its entries' names are units.
func (l *loader) links(dir, name, suffix string) {
	owner := strings.TrimSuffix(name, suffix)
	if !unitfile.ValidName(owner, unitfile.AnyName) {
		return
	}
	entries, err := os.ReadDir(filepath.Join(dir, name))
	if err != nil {
		l.problem(filepath.Join(dir, name), 0, "cannot read the directory: %v", cause(err))
		return
	}
	to := l.wants
	if suffix == ".requires" {
		to = l.requires
	}
	for _, e := range entries {
		if unitfile.ValidName(e.Name(), unitfile.Plain|unitfile.Instance) && !slices.Contains(to[owner], e.Name()) {
			to[owner] = append(to[owner], e.Name())
		}
	}
}

// names are the units that have a file of their own.
func (l *loader) names() []string {
	var out []string
	for name := range l.files {
		if unitfile.ValidName(name, unitfile.Plain|unitfile.Instance) {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}

// fragment finds the file of a unit: its own or its template's.
func (l *loader) fragment(name string) string {
	if f := l.files[name]; f != "" {
		return f
	}
	if template, err := unitfile.TemplateOf(name); err == nil && !l.masked[name] && !l.masked[template] {
		if to, ok := l.aliases[template]; ok {
			template = to
		}
		return l.files[template]
	}
	return ""
}

// load compiles a unit, once.
func (l *loader) load(name string) {
	if !l.tried[name] {
		l.keep(name, l.compile(name))
	}
}

// loadAll compiles units on all processors that legiond uses.
func (l *loader) loadAll(names []string) {
	made := make([]compiled, len(names))
	var next atomic.Int64
	var all sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(names)); i = next.Add(1) - 1 {
				made[i] = l.compile(names[i])
			}
		})
	}
	all.Wait()
	for i, name := range names {
		l.keep(name, made[i])
	}
}

// compiled is what has become of one unit: nil for none.
type compiled struct {
	group    *service.Group
	problems []service.Warning
}

func (l *loader) keep(name string, c compiled) {
	l.tried[name] = true
	l.problems = append(l.problems, c.problems...)
	if c.group != nil {
		l.groups[name] = c.group
	}
}

// compile reads a unit's files; the loader stays as it is.
func (l *loader) compile(name string) (c compiled) {
	path := l.fragment(name)
	if path == "" {
		return c
	}
	main, ok := c.read(l, path)
	if !ok {
		return c
	}
	var dropins []*unitfile.File
	for _, p := range l.dropins(name) {
		// A broken drop-in is said and left out, as systemd does: the unit
		// without it is nearer to what is wanted than no unit.
		if f, ok := c.read(l, p); ok {
			dropins = append(dropins, f)
		}
	}
	g, err := unitfile.Compile(name, main, dropins, l.opts.Options)
	if err != nil {
		c.failed(path, err)
		return c
	}
	if l.made[path] != "" {
		g.Source.Kind = service.FromInitd
	}
	for alias, to := range l.aliases {
		if to == name && !slices.Contains(g.Deps.Aliases, alias) {
			g.Deps.Aliases = append(g.Deps.Aliases, alias)
		}
	}
	sort.Strings(g.Deps.Aliases)
	if !l.opts.Enabled {
		g.Deps.WantedBy = l.linked(l.wants, g.Deps.WantedBy, name)
		g.Deps.RequiredBy = l.linked(l.requires, g.Deps.RequiredBy, name)
	}
	c.group = &g
	return c
}

// linked keeps the targets that have a link to the unit.
func (l *loader) linked(links map[string][]string, by []string, name string) []string {
	return slices.DeleteFunc(by, func(target string) bool { return !slices.Contains(links[target], name) })
}

func (c *compiled) read(l *loader, path string) (*unitfile.File, bool) {
	data, err := []byte(l.made[path]), error(nil)
	if l.made[path] == "" {
		data, err = readFile(path)
	}
	if err != nil {
		c.problems = append(c.problems, service.Warning{File: path, Text: fmt.Sprintf("cannot read the unit file: %v", cause(err))})
		return nil, false
	}
	f, err := unitfile.Parse(path, data)
	if err != nil {
		c.failed(path, err)
		return nil, false
	}
	return f, true
}

// readFile is os.ReadFile with half of its system calls: a host has many unit
// files, all of which are read at each start and reload.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	data := make([]byte, 0, 1024)
	for {
		n, err := unix.Read(fd, data[len(data):cap(data)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return data, nil
		default:
			data = data[:len(data)+n]
		}
		if len(data) == cap(data) {
			data = slices.Grow(data, 4*len(data))
		}
	}
}

func (c *compiled) failed(path string, err error) {
	w := service.Warning{File: path, Text: err.Error()}
	var e *unitfile.Error
	if errors.As(err, &e) {
		w = service.Warning{File: e.File, Line: e.Line, Text: e.Text}
	}
	c.problems = append(c.problems, w)
}

// cause leaves the path out of a file error, where it is said anyway.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// ownParts are units of systemd's package that do not carry its name.
var ownParts = []string{
	"debug-shell.service", "emergency.service", "rescue.service", "initrd-cleanup.service", "initrd-parse-etc.service",
	"initrd-switch-root.service", "initrd-udevadm-cleanup-db.service", "kmod-static-nodes.service", "ldconfig.service",
	"modprobe@.service", "quotaon.service", "user-runtime-dir@.service", "user@.service",
	"getty@.service", "serial-getty@.service", "container-getty@.service", "console-getty.service", "getty-static.service",
}

// systemdOwn says whether a unit is a part of systemd itself: its journal, its
// clock, its clean-up of /tmp at boot. Distributions pull these in by
// sysinit.target, on which nearly every unit depends; run by another service
// manager on a machine that is up, they do harm (docs/adr/0007).
func systemdOwn(name string) bool {
	if strings.HasPrefix(name, "systemd-") {
		return true
	}
	if slices.Contains(ownParts, name) {
		return true
	}
	prefix, _, at := strings.Cut(name, "@")
	return at && slices.Contains(ownParts, prefix+"@"+filepath.Ext(name))
}
