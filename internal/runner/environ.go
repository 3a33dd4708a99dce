package runner

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// DefaultPath is where bare command names are looked up and what PATH is set
// to (systemd.exec(5), "Environment Variables in Spawned Processes").
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ builds a process's environment; later sources win.
func (q *Request) environ(c *service.ExecContext, id identity) ([]string, *StartError) {
	var env []string
	set := func(list ...string) {
		for _, kv := range list {
			env = unitfile.SetEnvironment(env, kv)
		}
	}
	if !c.CleanEnvironment {
		path := DefaultPath
		if len(c.SearchPath) > 0 {
			path = strings.Join(c.SearchPath, ":")
		}
		set("PATH=" + path)
		if lang, ok := os.LookupEnv("LANG"); ok {
			set("LANG=" + lang)
		}
		if id.set {
			set("HOME="+id.home, "LOGNAME="+id.name, "USER="+id.name)
			if id.shell != "" {
				set("SHELL=" + id.shell)
			}
		}
		set("INVOCATION_ID=" + newInvocation())
		set(directoryVariables(c, q.Dirs)...)
	}
	set(q.Env...)
	if len(q.Files) > 0 {
		var names []string
		for _, f := range q.Files {
			names = append(names, f.Name)
		}
		set("LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	for _, name := range c.PassEnvironment {
		if v, ok := os.LookupEnv(name); ok {
			set(name + "=" + v)
		}
	}
	set(c.Environment...)
	for _, f := range c.EnvironmentFiles {
		list, err := readEnvironmentFiles(f)
		if err != nil {
			return nil, &StartError{Stage: fmt.Sprintf("read EnvironmentFile %q", f.Path), Err: err, Code: 1}
		}
		set(list...)
	}
	return unset(env, c.UnsetEnvironment), nil
}

func newInvocation() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// readEnvironmentFiles reads one EnvironmentFile= line, which may be a pattern.
func readEnvironmentFiles(f service.EnvironmentFile) ([]string, error) {
	paths := []string{f.Path}
	if strings.ContainsAny(f.Path, "*?[") {
		matches, err := filepath.Glob(f.Path)
		if err != nil {
			return nil, err
		}
		if len(matches) == 0 && !f.Optional {
			return nil, errors.New("no file matches")
		}
		paths = matches
	}
	var out []string
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			if f.Optional {
				continue
			}
			return nil, errors.Unwrap(err)
		}
		list, err := unitfile.ParseEnvironmentFile(data)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// unset removes variables by name, or by name and value.
func unset(env, names []string) []string {
	if len(names) == 0 {
		return env
	}
	var out []string
	for _, kv := range env {
		keep := true
		for _, n := range names {
			if kv == n || !strings.Contains(n, "=") && strings.HasPrefix(kv, n+"=") {
				keep = false
				break
			}
		}
		if keep {
			out = append(out, kv)
		}
	}
	return out
}

func lookup(env []string, name string) (string, bool) {
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v, true
		}
	}
	return "", false
}

// findCommand looks a bare name up in the directories of ExecSearchPath=, or else
// of PATH, below root.
func findCommand(path, root string, env, search []string) (string, error) {
	if strings.Contains(path, "/") {
		return path, nil
	}
	dirs, ok := lookup(env, "PATH")
	if len(search) > 0 {
		dirs = strings.Join(search, ":")
	} else if !ok || dirs == "" {
		dirs = DefaultPath
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if !filepath.IsAbs(dir) {
			continue
		}
		full := filepath.Join(dir, path)
		if st, err := os.Stat(filepath.Join(root, full)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return full, nil
		}
	}
	return "", fmt.Errorf("no such command in %s", dirs)
}
