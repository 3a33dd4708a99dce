package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
	"legion.dev/legion/internal/unitlink"
)

// setProperty writes drop-ins that change what a unit may use; legiond applies
// them to what runs when it reads its files again.
func (c *systemctl) setProperty(ctx context.Context) error {
	if len(c.args) < 2 {
		return tooFew()
	}
	names, err := mangled(c.args[:1])
	if err != nil {
		return err
	}
	name := names[0]
	t := c.tree(ctx, &c.file)
	u, err := t.Find(name)
	if errors.Is(err, unitlink.ErrNotFound) {
		err = fmt.Errorf("unit file %s not found", name)
	}
	if err != nil {
		return failedTo("set unit properties on "+name, err)
	}
	dir := t.Config
	if c.file.runtime {
		if dir = t.Runtime; dir == "" {
			return failedTo("set unit properties on "+name, errors.New("no directory of the unit path is for what holds until the next boot; leave --runtime out"))
		}
	}
	files := map[string]string{}
	for _, a := range c.args[1:] {
		property, section, err := settable(u.Name, a)
		if err != nil {
			return &Exit{exitFailure, err}
		}
		file := filepath.Join(u.Name+".d", "50-"+property+".conf")
		files[file] = fmt.Sprintf("# Written by systemctl set-property.\n[%s]\n%s\n", section, a)
	}
	for file, text := range files {
		if err := t.Replace(filepath.Join(unitdir.Control(dir), file), []byte(text)); err != nil {
			return failedTo("set unit properties on "+name, err)
		}
		if !c.file.runtime && t.Runtime != "" { // it would go before
			_ = os.Remove(filepath.Join(t.Root, unitdir.Control(t.Runtime), file))
		}
	}
	if c.file.root != "" {
		return nil
	}
	return c.offline(c.follow(ctx, "set-property", names, &c.file, true))
}

// settable checks an assignment: a directive of systemd.resource-control(5) or
// the description, with a value that can be read.
func settable(unit, assignment string) (property, section string, err error) {
	property, value, ok := strings.Cut(assignment, "=")
	section = "Service"
	if property == "Description" {
		section = "Unit"
	}
	if !ok || section == "Service" && (!unitfile.OfResources(property) || filepath.Ext(unit) != ".service") {
		return "", "", fmt.Errorf("Cannot set property %s, or unknown property.", property) //lint:ignore ST1005 systemctl's words
	}
	if strings.ContainsAny(value, "\n\x00") {
		return "", "", fmt.Errorf("the value of %s= has more than one line", property)
	}
	f := &unitfile.File{Path: "set-property", Entries: []unitfile.Entry{
		{Section: "Service", Key: "ExecStart", Value: "/bin/true"}, {Section: section, Key: property, Value: value},
	}}
	g, err := unitfile.Compile("a.service", f, nil, unitdir.ThisMachine())
	if err == nil && len(g.Warnings) > 0 {
		err = errors.New(g.Warnings[0].Text)
	}
	return property, section, err
}

// addDependencies links units into TARGET.wants/ or TARGET.requires/.
func (c *systemctl) addDependencies(ctx context.Context, verb string) error {
	if len(c.args) < 2 {
		return tooFew()
	}
	names, err := mangled(c.args)
	if err != nil {
		return err
	}
	changes, err := c.tree(ctx, &c.file).AddTo(names[0], strings.TrimPrefix(verb, "add-"), names[1:], unitlink.How{Runtime: c.file.runtime, Force: c.file.force})
	for _, change := range changes {
		if !c.file.quiet {
			fmt.Fprintln(c.Err, change)
		}
	}
	if err != nil {
		return failedTo("add dependency", err)
	}
	if c.file.root != "" {
		return nil
	}
	return c.offline(c.follow(ctx, verb, names[1:], &c.file, len(changes) > 0))
}
