// Package initd turns init.d scripts with LSB headers into unit files, by the
// rules of systemd-sysv-generator(8): what comes out is compiled like any other
// unit, drop-ins included.
package initd

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"legion.dev/legion/internal/unitfile"
)

// Script is one file of the directory of scripts.
type Script struct {
	// Path is the script's; its last part is its name.
	Path string
	Text string
	// Links are the links to it in the directories of the runlevels:
	// "rc2.d/S01foo".
	Links []string
}

// Unit is what a script becomes.
type Unit struct {
	Name string
	// Path is the script's.
	Path string
	// Text is the unit file.
	Text string
	// Aliases are further names, out of Provides:.
	Aliases []string
	// WantedBy are the targets of the runlevels in which it starts.
	WantedBy []string
}

// left are the endings of files that editors and package managers leave.
var left = []string{
	".rpmnew", ".rpmsave", ".rpmorig", ".dpkg-old", ".dpkg-new", ".dpkg-tmp", ".dpkg-dist", ".dpkg-bak", ".dpkg-backup",
	".dpkg-remove", ".ucf-new", ".ucf-old", ".ucf-dist", ".swp", ".bak", ".old", ".new", "~",
}

// Ignored says whether a file of that name is no script but a copy of one.
func Ignored(name string) bool {
	return strings.HasPrefix(name, ".") || slices.ContainsFunc(left, func(s string) bool { return strings.HasSuffix(name, s) })
}

// UnitName is the name of the unit that a script becomes.
func UnitName(script string) (string, error) {
	if strings.ContainsAny(script, `"'\`) || strings.ContainsFunc(script, unicode.IsControl) || !utf8.ValidString(script) {
		return "", fmt.Errorf("the script %q has a name that no command can have", script)
	}
	name, err := unitfile.Mangle(strings.TrimSuffix(script, ".sh")+".service", false)
	if err == nil && !unitfile.ValidName(name, unitfile.Plain|unitfile.Instance) {
		err = fmt.Errorf("%s is a template", name)
	}
	if err != nil {
		return "", fmt.Errorf("the script %s has no name that a unit can have: %w", script, err)
	}
	return name, nil
}

// Units makes the units of the scripts. Native says which names are taken by
// unit files, which go before scripts. A script that cannot become a unit is
// left out, with the reason.
func Units(scripts []Script, native func(name string) bool) (units []Unit, problems []error) {
	var all []*script
	for _, s := range scripts {
		base := path.Base(s.Path)
		if Ignored(base) {
			continue
		}
		name, err := UnitName(base)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if native(name) || slices.ContainsFunc(all, func(o *script) bool { return o.unit.Name == name }) {
			continue
		}
		p := parse(s.Text)
		p.unit = Unit{Name: name, Path: s.Path}
		p.base = base
		p.runlevels(s.Links)
		p.order()
		all = append(all, p)
	}
	taken := map[string]bool{}
	for _, p := range all {
		taken[p.unit.Name] = true
	}
	for _, p := range all {
		p.unit.Aliases = slices.DeleteFunc(p.unit.Aliases, func(a string) bool { return taken[a] || native(a) })
		for _, a := range p.unit.Aliases {
			taken[a] = true // the first script that provides a name has it
		}
		p.byPriority(all)
		p.unit.Text = p.text()
		units = append(units, p.unit)
	}
	return units, problems
}

// script is one under way.
type script struct {
	header
	base                 string
	unit                 Unit
	before, after, wants []string
	// priority is the highest of its links; -1 without any.
	priority int
}

// runlevels reads the links (init(8)): S and K, two digits, the name.
func (p *script) runlevels(links []string) {
	p.priority = -1
	targets := map[string]string{"rc2.d": "multi-user.target", "rc3.d": "multi-user.target", "rc4.d": "multi-user.target", "rc5.d": "graphical.target"}
	for _, link := range links {
		dir, name := path.Split(link)
		target := targets[path.Base(dir)]
		if target == "" || len(name) < 4 || name[0] != 'S' || strings.Trim(name[1:3], "0123456789") != "" {
			continue
		}
		p.priority = max(p.priority, int(name[1]-'0')*10+int(name[2]-'0'))
		add(&p.unit.WantedBy, target)
	}
	slices.Sort(p.unit.WantedBy)
}

// facilities are the LSB's names for what the system provides; empty is there
// from the start.
var facilities = map[string]string{
	"$local_fs": "", "$network": "network-online.target", "$named": "nss-lookup.target", "$portmap": "rpcbind.target",
	"$remote_fs": "remote-fs.target", "$syslog": "", "$time": "time-sync.target",
}

// facility is the unit that a name of the header stands for; empty for none.
func (p *script) facility(name string) string {
	if unit, ok := facilities[name]; ok {
		return unit
	}
	name = strings.TrimPrefix(name, "$")
	if name == "" || strings.TrimSuffix(name, ".sh") == strings.TrimSuffix(p.base, ".sh") {
		return ""
	}
	unit, err := UnitName(name)
	if err != nil || unit == p.unit.Name {
		return ""
	}
	return unit
}

func add(list *[]string, name string) {
	if name != "" && !slices.Contains(*list, name) {
		*list = append(*list, name)
	}
}

// order makes dependencies of the header's facilities.
func (p *script) order() {
	for _, name := range p.provides {
		unit := p.facility(name)
		if strings.HasSuffix(unit, ".target") {
			// It makes what the target stands for.
			add(&p.before, unit)
			add(&p.wants, unit)
			continue
		}
		add(&p.unit.Aliases, unit)
	}
	for _, name := range p.startAfter {
		unit := p.facility(name)
		add(&p.after, unit)
		if unit == "network-online.target" {
			add(&p.wants, unit)
		}
	}
	for _, name := range p.startBefore {
		add(&p.before, p.facility(name))
	}
}

// byPriority orders scripts of which one has no header by the numbers of their
// links.
func (p *script) byPriority(all []*script) {
	for _, o := range all {
		if p == o || p.lsb && o.lsb || p.priority < 0 || o.priority < 0 {
			continue
		}
		if o.priority < p.priority {
			add(&p.after, o.unit.Name)
		} else if o.priority > p.priority {
			add(&p.before, o.unit.Name)
		}
	}
}

// text writes the unit file.
func (p *script) text() string {
	var b strings.Builder
	line := func(key, value string) {
		if value = plain(value); value != "" {
			fmt.Fprintf(&b, "%s=%s\n", key, value)
		}
	}
	escape := strings.NewReplacer("%", "%%").Replace
	command := strings.NewReplacer("%", "%%", "$", "$$", `\`, `\\`, `"`, `\"`).Replace(p.unit.Path)
	b.WriteString("[Unit]\n")
	line("Documentation", "man:systemd-sysv-generator(8)")
	line("SourcePath", escape(p.unit.Path))
	line("Description", escape(p.title()))
	line("Before", strings.Join(p.before, " "))
	line("After", strings.Join(p.after, " "))
	line("Wants", strings.Join(p.wants, " "))
	b.WriteString("\n[Service]\nType=forking\n")
	if p.pidFile != "" {
		// With a main process to watch, its failure can be seen and mended.
		line("Restart", "on-failure")
	} else {
		line("Restart", "no")
	}
	b.WriteString("TimeoutSec=5min\nIgnoreSIGPIPE=no\nKillMode=process\nGuessMainPID=no\n")
	if p.pidFile != "" {
		line("RemainAfterExit", "no")
		line("PIDFile", escape(p.pidFile))
	} else {
		line("RemainAfterExit", "yes")
	}
	if p.lsb { // not installed, not configured
		line("SuccessExitStatus", "5 6")
	}
	fmt.Fprintf(&b, "ExecStart=\"%s\" start\nExecStop=\"%[1]s\" stop\n", command)
	if p.reload {
		fmt.Fprintf(&b, "ExecReload=\"%s\" reload\n", command)
	}
	return b.String()
}

// plain leaves out of a value what would end it, or its line, early.
func plain(value string) string {
	value = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(value, ""))
	return strings.TrimSpace(strings.TrimRight(value, `\ `))
}

func (p *script) title() string {
	switch {
	case p.short != "":
		return "LSB: " + p.short
	case p.description != "" && p.lsb:
		return "LSB: " + p.description
	case p.description != "":
		return "SYSV: " + p.description
	}
	return p.base
}
