package unitdir

import (
	"slices"
	"sort"
	"strings"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// special are the targets of systemd.special(7) that exist without a file:
// distributions order their units by them.
var special = []string{
	"basic.target", "bluetooth.target", "cryptsetup.target", "emergency.target", "exit.target",
	"final.target", "getty-pre.target", "getty.target", "graphical.target", "halt.target", "initrd.target",
	"local-fs-pre.target", "local-fs.target", "machines.target", "multi-user.target", "network-online.target",
	"network-pre.target", "network.target", "nss-lookup.target", "nss-user-lookup.target", "paths.target",
	"poweroff.target", "printer.target", "reboot.target", "remote-fs-pre.target", "remote-fs.target",
	"rescue.target", "rpcbind.target", "shutdown.target", "sigpwr.target", "sleep.target", "slices.target",
	"smartcard.target", "sockets.target", "sound.target", "suspend.target", "swap.target", "sysinit.target",
	"system-update.target", "time-set.target", "time-sync.target", "timers.target", "umount.target", "usb-gadget.target",
}

// pull adds what the links of .wants and .requires say, loads the instances of
// templates that something names, and makes the special targets that are named
// and have no file.
func (l *loader) pull() {
	for _, owner := range sortedKeys(l.wants, l.requires) {
		l.resolve(owner)
		if g := l.groups[l.canonical(owner)]; g != nil {
			g.Deps.Wants = l.merge(g.Deps.Wants, l.wants[owner])
			g.Deps.Requires = l.merge(g.Deps.Requires, l.requires[owner])
		}
	}
	for again := true; again; {
		before := len(l.groups)
		for _, name := range sortedKeys(l.groups) {
			d := l.groups[name].Deps
			for _, list := range [][]string{d.Requires, d.Wants, d.BindsTo, d.Requisite, d.After, d.Before, d.Upholds, d.OnFailure, d.OnSuccess, d.PartOf, d.PropagatesStopTo, d.PropagatesReloadTo, {l.groups[name].Triggers()}} {
				for _, to := range list {
					l.resolve(to)
				}
			}
		}
		again = len(l.groups) > before
	}
	for _, name := range sortedKeys(l.groups) {
		l.unsupported(l.groups[name])
	}
}

func sortedKeys[V any](maps ...map[string]V) []string {
	var out []string
	for _, m := range maps {
		for k := range m {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return slices.Compact(out)
}

func (l *loader) canonical(name string) string {
	for range 8 { // aliases of aliases, without following a ring for ever
		to, ok := l.aliases[name]
		if !ok {
			break
		}
		name = to
	}
	return name
}

// merge adds the names that are not in the list.
func (l *loader) merge(list, more []string) []string {
	for _, m := range more {
		if !slices.Contains(list, m) && !l.masked[m] && !systemdOwn(m) {
			list = append(list, m)
		}
	}
	return list
}

// resolve makes sure that a name which something refers to is loaded if it can
// be. Not so the template that a socket names: each connection makes an instance.
func (l *loader) resolve(name string) {
	name = l.canonical(name)
	if l.groups[name] != nil || l.masked[name] || unitfile.ValidName(name, unitfile.Template) {
		return
	}
	l.load(name)
	_, named := l.wants[name]
	_, required := l.requires[name]
	if l.groups[name] == nil && l.files[name] == "" && (slices.Contains(special, name) || strings.HasSuffix(name, ".target") && (named || required)) {
		l.target(name)
	}
}

// target makes a target that has no file.
func (l *loader) target(name string) *service.Group {
	g := &service.Group{
		Name: name, Source: service.Source{Kind: service.FromTarget},
		Description: "Target " + strings.TrimSuffix(name, ".target"),
	}
	g.Deps.Wants = l.merge(nil, l.wants[name])
	g.Deps.Requires = l.merge(nil, l.requires[name])
	l.groups[name] = g
	return g
}

// unsupported takes out the dependencies on units of types that Legion does
// not have: a Requires= on a mount or a socket would else keep the unit from
// starting for ever.
func (l *loader) unsupported(g *service.Group) {
	drop := func(list []string, word string) []string {
		return slices.DeleteFunc(list, func(name string) bool {
			_, _, suffix, _ := unitfile.ParseName(name)
			if systemdOwn(name) {
				return true // the machine has seen to what it does
			}
			if slices.Contains(loaded, suffix) {
				return false
			}
			if suffix != ".slice" && name != "-.mount" && len(g.Source.Files) > 0 {
				g.Warnings = append(g.Warnings, service.Warning{
					File: g.Source.Files[0],
					Text: word + "= on " + name + " is not honoured yet: there are no units of type " + strings.TrimPrefix(suffix, "."),
				})
			}
			return true
		})
	}
	d := &g.Deps
	d.Requires, d.Requisite, d.BindsTo = drop(d.Requires, "Requires"), drop(d.Requisite, "Requisite"), drop(d.BindsTo, "BindsTo")
}

// boot marks the target that is started at boot, if there is one: it has a file,
// a link, or units that enabling has linked to it. default.target without any
// of these is multi-user.target, as distributions have it.
func (l *loader) boot() {
	l.resolve(l.opts.Boot)
	g := l.groups[l.canonical(l.opts.Boot)]
	if l.opts.Boot == "default.target" && (g == nil || len(g.Source.Files) == 0 && len(g.Deps.Wants)+len(g.Deps.Requires) == 0) {
		delete(l.groups, "default.target")
		g = l.groups[l.canonical("multi-user.target")]
	}
	if g != nil {
		g.Boot = true
	}
}
