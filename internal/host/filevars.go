package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/envfile"
	"legion.dev/legion/internal/service"
)

// Variables that a file sets, as a container's fileKeyRef: see FileVariable of
// package service. Values are in the order of the variables, nil for one that is
// not set.

// mostVariables bounds a file of variables in bytes.
const mostVariables = 1 << 20

// readVariables reads the values of now.
func readVariables(list []service.FileVariable) ([]*string, error) {
	var out []*string
	for i := range list {
		v := &list[i]
		text, err := readWithin(v.Dir, v.Path)
		if errors.Is(err, fs.ErrNotExist) && v.Optional {
			out = append(out, nil)
			continue
		}
		value, ok := "", false
		if err == nil {
			value, ok, err = envfile.Value(text, v.Key)
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("cannot read variable %s from file %q of its volume: %w", v.Name, v.Path, plain(err))
		case ok:
			out = append(out, &value)
		case v.Optional:
			out = append(out, nil)
		default:
			return nil, fmt.Errorf("environment variable key %q not found in file %q of its volume", v.Key, v.Path)
		}
	}
	return out, nil
}

// plain leaves out what of an error only the host knows: where the volume lies.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// readWithin reads a file that containers may have made into anything.
func readWithin(dir, path string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	st, err := regular(f)
	if err != nil {
		return "", err
	}
	if st.Size() > mostVariables {
		return "", fmt.Errorf("it is longer than %d bytes", mostVariables)
	}
	text, err := io.ReadAll(io.LimitReader(f, mostVariables))
	return string(text), err
}

// regular refuses an open file that would keep its reader waiting, or never end.
// It must have been opened without waiting (O_NONBLOCK), too.
func regular(f *os.File) (fs.FileInfo, error) {
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	return st, err
}

// setter puts values in the place of their marks. What is not set stays as it is
// written in the manifest.
func setter(list []service.FileVariable, values []*string) *strings.Replacer {
	var pairs []string
	for i := range list {
		text := "$(" + list[i].Name + ")"
		if i < len(values) && values[i] != nil {
			text = *values[i]
		}
		pairs = append(pairs, list[i].Mark, text)
	}
	return strings.NewReplacer(pairs...)
}

// context is the service's, with the variables that were read at its start.
func (u *unit) context() *service.ExecContext { return withVariables(&u.spec.Exec, u.values) }

func withVariables(c *service.ExecContext, values []*string) *service.ExecContext {
	if len(c.FileVariables) == 0 {
		return c
	}
	out := *c
	out.Environment = setVariables(c.Environment, c.FileVariables, values)
	if c.Container != nil {
		container := *c.Container
		container.Spec = configured(container.Spec, c.FileVariables, values)
		out.Container = &container
	}
	return &out
}

// setVariables leaves out those that are not set.
func setVariables(env []string, list []service.FileVariable, values []*string) []string {
	set := setter(list, values)
	var out []string
	for _, kv := range env {
		unset := func(v service.FileVariable) bool { return kv == v.Name+"="+v.Mark }
		if i := slices.IndexFunc(list, unset); i < 0 || i < len(values) && values[i] != nil {
			out = append(out, set.Replace(kv))
		}
	}
	return out
}

// withWords sets the variables in a command.
func withWords(c service.Command, list []service.FileVariable, values []*string) service.Command {
	if len(list) == 0 {
		return c
	}
	set := setter(list, values)
	c.Path, c.Argv = set.Replace(c.Path), slices.Clone(c.Argv)
	for i := range c.Argv {
		c.Argv[i] = set.Replace(c.Argv[i])
	}
	return c
}

// configured sets the variables in the configuration of a container.
func configured(text json.RawMessage, list []service.FileVariable, values []*string) json.RawMessage {
	var spec, process map[string]json.RawMessage
	var env, args []string
	if json.Unmarshal(text, &spec) != nil || json.Unmarshal(spec["process"], &process) != nil ||
		json.Unmarshal(process["env"], &env) != nil || json.Unmarshal(process["args"], &args) != nil {
		return text // for its runtime to refuse
	}
	process["env"] = encoded(setVariables(env, list, values))
	process["args"] = encoded(withWords(service.Command{Argv: args}, list, values).Argv)
	spec["process"] = encoded(process)
	return encoded(spec)
}

func encoded(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("what was decoded does not encode: %v", err))
	}
	return text
}
