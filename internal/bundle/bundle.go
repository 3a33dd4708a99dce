// Package bundle makes ready, before each run of a container, the directory
// that an OCI runtime starts it from: the root file system over the image's
// layers, and config.json; and takes it away afterwards.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/service"
)

// Root is the container's root file system in its bundle.
const Root = "rootfs"

// PIDFile is where the runtime says which process is the container's first.
const PIDFile = "pid"

// volumes holds what volumes are mounted on that the runtime does not bind from
// where they are, layers those of the image while they are needed.
const (
	volumes = "volumes"
	layers  = "layers"
)

// Prepare makes the bundle of a container that does not run. Each run begins
// with the image as it is: what an earlier one wrote is gone. cgroup is the
// service's, an absolute directory, or empty; holder is the process whose PID
// namespace it is in where c.PIDs says that it is in another's.
func Prepare(c *service.Container, list []service.Mount, cgroup string, holder int) error {
	if c.PIDs != "" && holder == 0 {
		return errors.New("the process that holds the pod's PID namespace does not run")
	}
	if err := mounts.Sources(list); err != nil {
		return err
	}
	if err := release(c); err != nil {
		return err
	}
	if err := os.MkdirAll(c.Bundle, 0o700); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	users, err := ownersOf(c)
	if err != nil {
		return err
	}
	defer users.close()
	if !c.Copied {
		if err := overlay(c, users); err != nil {
			return err
		}
	}
	targets, err := sources(c, list, users)
	if err != nil {
		return err
	}
	text, err := configure(c, targets, cgroup, holder, users)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.Bundle, "config.json"), text, 0o600); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	// What a runtime that was killed knew of the container, and its process.
	for _, old := range []string{filepath.Join(c.Bundle, PIDFile), filepath.Join(c.Bundle, service.RuntimeLog), filepath.Join(c.State, c.ID)} {
		err = errors.Join(err, os.RemoveAll(old))
	}
	if err != nil {
		return fmt.Errorf("forget the container's last run: %w", err)
	}
	return nil
}

// Release takes away what Prepare made, and what a runtime that was killed while
// it took the container away still knew of it. The container must not run.
func Release(c *service.Container, list []service.Mount) error {
	return errors.Join(release(c), mounts.ReleaseSources(list), os.RemoveAll(filepath.Join(c.State, c.ID)))
}

func release(c *service.Container) error {
	problems := []error{unmountAll(filepath.Join(c.Bundle, volumes)), unmountAll(filepath.Join(c.Bundle, layers))}
	if !c.Copied {
		problems = append(problems, unmount(rootOf(c)))
	}
	if err := errors.Join(problems...); err != nil {
		return err // what is still mounted must not be removed
	}
	gone := []string{volumes, layers, "upper", "work"}
	if !c.Copied {
		gone = append(gone, Root)
	}
	if c.Users {
		problems = append(problems, os.RemoveAll(filepath.Dir(rootOf(c))))
	}
	for _, name := range gone {
		problems = append(problems, os.RemoveAll(filepath.Join(c.Bundle, name)))
	}
	return errors.Join(problems...)
}

// unmountAll ends what is mounted on each entry of a directory.
func unmountAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, unmount(filepath.Join(dir, e.Name())))
	}
	return err
}

func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // EINVAL: nothing is mounted there
	}
	return fmt.Errorf("unmount %s: %w", path, err)
}

// overlay mounts the root file system.
func overlay(c *service.Container, users *owners) error {
	for _, name := range []string{"upper", "work", Root} {
		// The upper directory is the root's own.
		if err := os.MkdirAll(filepath.Join(c.Bundle, name), 0o755); err != nil {
			return fmt.Errorf("make the bundle: %w", err)
		}
	}
	o := mounts.Overlay{Layers: c.Layers, Upper: filepath.Join(c.Bundle, "upper"), Work: filepath.Join(c.Bundle, "work")}
	for _, dir := range o.Layers {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("a layer of the image is not there any more, pull the image again: %w", err)
		}
	}
	if len(o.Layers) == 0 {
		o.Layers = []string{filepath.Join(c.Bundle, "empty")}
		if err := os.MkdirAll(o.Layers[0], 0o755); err != nil {
			return fmt.Errorf("make the bundle: %w", err)
		}
	}
	if users != nil {
		var err error
		if o.Layers, err = users.layers(c, o.Layers); err == nil {
			err = users.ready(c)
		}
		if err == nil {
			err = o.Mount(rootOf(c))
		}
		return errors.Join(err, unmountAll(filepath.Join(c.Bundle, layers)))
	}
	return o.Mount(rootOf(c))
}

// sources gives for each mount the path that the runtime is to bind: for a
// subPath a mount of what it is now, so that nobody in the container's pod can
// make it another between here and there, and for users of its own one that they
// own. Those do not own an image's files.
func sources(c *service.Container, list []service.Mount, users *owners) ([]target, error) {
	var out []target
	for i := range list {
		m := &list[i]
		t := target{Mount: m, source: m.Source}
		at := filepath.Join(c.Bundle, volumes, strconv.Itoa(i))
		switch {
		case m.SubPath != "":
			if err := pin(m, at, users); err != nil {
				return nil, fmt.Errorf("volume for %q: subPath %q: %w", m.Target, m.SubPath, err)
			}
			t.source = at
		case users != nil && m.Image == nil:
			if err := show(m.Source, at, users); err != nil {
				return nil, fmt.Errorf("volume for %q: %w", m.Target, err)
			}
			t.source = at
		}
		out = append(out, t)
	}
	// Outer ones first.
	slices.SortStableFunc(out, func(a, b target) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	return out, nil
}

// target is a mount and where its source lies.
type target struct {
	*service.Mount
	source string
}

// pin mounts a volume's subPath at a path of the bundle.
func pin(m *service.Mount, at string, users *owners) error {
	volume, err := os.OpenRoot(m.Source)
	if err != nil {
		return err
	}
	defer func() { _ = volume.Close() }()
	f, err := volume.Open(m.SubPath)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if m.Image != nil {
		users = nil
	}
	return show("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), at, users)
}

// show mounts a file or directory at a path of the bundle.
func show(source, at string, users *owners) error {
	st, err := os.Stat(source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return err
	}
	if st.IsDir() {
		err = os.Mkdir(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if users != nil {
		return mounts.Idmapped(source, at, users.ns)
	}
	return unix.Mount(source, at, "", unix.MS_BIND|unix.MS_REC, "")
}

// configure completes the runtime's configuration. It is kept as it is written
// but for the fields that are the host's.
func configure(c *service.Container, list []target, cgroup string, holder int, users *owners) ([]byte, error) {
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(c.Spec, &spec); err != nil {
		return nil, fmt.Errorf("the container's configuration: %w", err)
	}
	part := func(name string, into any) error {
		if len(spec[name]) == 0 {
			return nil
		}
		return json.Unmarshal(spec[name], into)
	}
	root, linux, process := map[string]any{}, map[string]any{}, map[string]any{}
	var all []json.RawMessage
	if err := errors.Join(part("root", &root), part("linux", &linux), part("process", &process), part("mounts", &all)); err != nil {
		return nil, fmt.Errorf("the container's configuration: %w", err)
	}
	root["path"] = Root
	if c.Users {
		root["path"] = rootOf(c)
	}
	out := map[string]any{}
	for name, value := range spec {
		out[name] = value
	}
	keepTogether(out, linux, cgroup, c.ID)
	mounted := make([]any, 0, len(all)+len(list))
	for _, m := range all {
		mounted = append(mounted, m)
	}
	for _, t := range list {
		mounted = append(mounted, t.entry())
	}
	if c.Pauses {
		m, err := pause()
		if err != nil {
			return nil, err
		}
		mounted = append(mounted, m)
	}
	if c.PIDs != "" {
		joinPIDs(linux, holder)
	}
	users.namespace(linux, holder)
	bound(process, given())
	out["root"], out["linux"], out["process"], out["mounts"] = root, linux, process, mounted
	return json.Marshal(out)
}

// entry is the mount in the runtime's terms.
func (t target) entry() map[string]any {
	options := []string{"rbind"}
	switch {
	case t.ReadOnly && t.Recursive:
		options = append(options, "ro", "rro")
	case t.ReadOnly:
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	if t.Image != nil {
		options = append(options, "noexec", "nosuid", "nodev")
	}
	switch t.Propagation {
	case "slave":
		options = append(options, "rslave")
	case "shared":
		options = append(options, "rshared")
	default:
		options = append(options, "rprivate")
	}
	return map[string]any{"destination": t.Target, "type": "bind", "source": t.source, "options": options}
}

// keepTogether has the container's processes in the service's cgroup of version
// 2, by which they are tracked and killed. Where version 2 is all there is, the
// runtime makes the container's cgroup below it. Where version 1 is beside it,
// the runtime makes those of version 1 below wherever the service was put, as a
// path without a slash in front says; but that of version 2 it then makes at the
// top, and so the container is moved before any of its own program runs.
func keepTogether(spec, linux map[string]any, cgroup, id string) {
	linux["cgroupsPath"] = id
	const mount = "/sys/fs/cgroup"
	below, ok := strings.CutPrefix(cgroup, mount+"/")
	if !ok {
		return
	}
	var st unix.Statfs_t
	if unix.Statfs(mount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		linux["cgroupsPath"] = "/" + filepath.Join(below, "container")
		return
	}
	// A hook is told of the container on its standard input.
	const move = `pid=$(sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p') && echo "$pid" >"$0/cgroup.procs"`
	spec["hooks"] = map[string]any{"createRuntime": []any{map[string]any{
		"path": "/bin/sh", "args": []string{"sh", "-c", move, cgroup}, "env": []string{"PATH=/usr/bin:/bin"},
	}}}
}
