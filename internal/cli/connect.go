package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/unitfile"
)

// socketPath is the legiond to ask: -H, $LEGION_HOST, $LEGION_DIR/host.sock,
// else the user's own.
func (s *session) socketPath() string {
	path := s.socket
	if path == "" {
		path = s.Getenv("LEGION_HOST")
	}
	if path == "" {
		if dir := s.Getenv("LEGION_DIR"); dir != "" {
			path = filepath.Join(dir, "host.sock")
		}
	}
	if path == "" {
		return s.ownSocket()
	}
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		path = filepath.Join(path, "host.sock")
	}
	return path
}

// ownSocket is the first that exists of the places where a legiond of this
// user listens if nothing else was said.
func (s *session) ownSocket() string {
	if s.Root {
		const usual, inMemory = "/var/lib/legion/host.sock", "/run/legion/host.sock"
		_, err1 := os.Stat(usual)
		_, err2 := os.Stat(inMemory)
		if err1 != nil && err2 == nil {
			return inMemory // legiond is PID 1 on a read-only root
		}
		return usual
	}
	home := s.Getenv("HOME")
	data := s.Getenv("XDG_DATA_HOME")
	if data == "" {
		data = filepath.Join(home, ".local", "share")
	}
	places := []string{filepath.Join(data, "legion", "host.sock"), filepath.Join(home, ".legion", "host.sock")}
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return places[0]
}

func (s *session) client() *hostclient.Client { return hostclient.New(s.socketPath()) }

// podOf gives the namespace and name of the pod that a group was made from.
func podOf(g hostapi.Group) (namespace, name string, ok bool) {
	text := g.Spec.Annotations["legion.dev/pod"]
	if text == "" {
		return "", "", false
	}
	var pod struct {
		Metadata struct{ Namespace, Name string }
	}
	if json.Unmarshal([]byte(text), &pod) != nil || pod.Metadata.Name == "" {
		return "", "", false
	}
	return pod.Metadata.Namespace, pod.Metadata.Name, true
}

// called says whether the group is meant by what a person typed: its name, an
// alias, the name without .service, or the pod's.
func called(g hostapi.Group, typed string) bool {
	names := append([]string{g.Spec.Name}, g.Spec.Deps.Aliases...)
	if slices.Contains(names, typed) {
		return true
	}
	if mangled, err := unitfile.Mangle(typed, false); err == nil && slices.Contains(names, mangled) {
		return true
	}
	namespace, name, ok := podOf(g)
	return ok && (typed == name || typed == namespace+"/"+name)
}

// find gives the groups that were typed, in that order.
func (s *session) find(ctx context.Context, c *hostclient.Client, typed []string) ([]hostapi.Group, error) {
	all, err := c.Groups(ctx)
	if err != nil {
		return nil, err
	}
	var out []hostapi.Group
	for _, t := range typed {
		var found []hostapi.Group
		for _, g := range all {
			switch {
			case g.Spec.Name == t:
				found = []hostapi.Group{g}
			case called(g, t) && (len(found) == 0 || found[0].Spec.Name != t):
				found = append(found, g)
			}
		}
		switch len(found) {
		case 0:
			return nil, s.missing(ctx, c, t)
		case 1:
			out = append(out, found[0])
		default:
			var names []string
			for _, g := range found {
				names = append(names, title(g))
			}
			return nil, &Exit{exitFailure, fmt.Errorf("%q is the name of more than one: %s\nwrite the namespace, too, or the name of the group", t, strings.Join(names, ", "))}
		}
	}
	return out, nil
}

// missing says why there is no such group: its file is broken, or there is
// none.
func (s *session) missing(ctx context.Context, c *hostclient.Client, typed string) error {
	name, err := unitfile.Mangle(typed, false)
	if err != nil {
		name = typed
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	for _, p := range info.Problems {
		if p.File != "" && (filepath.Base(p.File) == name || filepath.Base(filepath.Dir(p.File)) == name+".d") {
			return &Exit{exitNoSuchUnit, fmt.Errorf("%s could not be loaded: %s\ncorrect the file, then run: legion daemon-reload", name, place(p))}
		}
	}
	if unitfile.ValidName(name, unitfile.Instance) {
		return &Exit{exitNoSuchUnit, fmt.Errorf("there is no unit %s on this host\nan instance of a template is there once a unit names it (Wants=%s), or a link in a .wants directory; unit files are read from %s", name, name, strings.Join(info.UnitPath, ", "))}
	}
	return &Exit{exitNoSuchUnit, fmt.Errorf("there is no unit %s on this host\nlegion list shows what there is; unit files are read from %s", name, strings.Join(info.UnitPath, ", "))}
}

// explained adds the hint of legiond's error to its text, and gives it its exit
// status.
func explained(err error) error {
	var e *hostapi.Error
	if !errors.As(err, &e) {
		return err
	}
	text := e.Message
	if e.Hint != "" {
		text += "\n" + e.Hint
	}
	code := exitFailure
	if e.Code == "not-found" {
		code = exitNoSuchUnit
	}
	return &Exit{code, errors.New(text)}
}

// printJSON is -o json.
func (s *session) printJSON(v any) error {
	e := json.NewEncoder(s.Out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// json says whether -o json was given; other formats are refused.
func (s *session) json() (bool, error) {
	switch s.output {
	case "":
		return false, nil
	case "json":
		return true, nil
	}
	return false, &Exit{exitUsage, fmt.Errorf("unknown output format %q: leave -o out, or write -o json", s.output)}
}
