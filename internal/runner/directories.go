package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// BaseDirs are the directories below which RuntimeDirectory= and its like make
// theirs.
type BaseDirs struct {
	Runtime, State, Cache, Logs, Config string
}

// DefaultBaseDirs are those of the system for root, else those of the XDG base
// directory specification, as in systemd.exec(5).
func DefaultBaseDirs() BaseDirs {
	if os.Geteuid() == 0 {
		return BaseDirs{"/run", "/var/lib", "/var/cache", "/var/log", "/etc"}
	}
	home, _ := os.UserHomeDir()
	xdg := func(name, standard string) string {
		if v := os.Getenv(name); filepath.IsAbs(v) {
			return v
		}
		return standard
	}
	state := xdg("XDG_STATE_HOME", filepath.Join(home, ".local/state"))
	return BaseDirs{
		Runtime: xdg("XDG_RUNTIME_DIR", fmt.Sprintf("/run/user/%d", os.Geteuid())),
		State:   state,
		Cache:   xdg("XDG_CACHE_HOME", filepath.Join(home, ".cache")),
		Logs:    filepath.Join(state, "log"),
		Config:  xdg("XDG_CONFIG_HOME", filepath.Join(home, ".config")),
	}
}

// directoryKind is one of the five …Directory= settings.
type directoryKind struct {
	variable, directive string
	base                string
	entries             []service.Directory
	// owned: it belongs to the service's user.
	owned bool
	code  int
}

func directoryKinds(c *service.ExecContext, b BaseDirs) []directoryKind {
	if b == (BaseDirs{}) {
		b = DefaultBaseDirs()
	}
	return []directoryKind{
		{"RUNTIME_DIRECTORY", "RuntimeDirectory", b.Runtime, c.Runtime, true, sandbox.CodeRuntimeDir},
		{"STATE_DIRECTORY", "StateDirectory", b.State, c.State, true, sandbox.CodeStateDir},
		{"CACHE_DIRECTORY", "CacheDirectory", b.Cache, c.Cache, true, sandbox.CodeStateDir},
		{"LOGS_DIRECTORY", "LogsDirectory", b.Logs, c.Logs, true, sandbox.CodeStateDir},
		{"CONFIGURATION_DIRECTORY", "ConfigurationDirectory", b.Config, c.Configuration, false, sandbox.CodeStateDir},
	}
}

func directoryVariables(c *service.ExecContext, b BaseDirs) []string {
	var out []string
	for _, k := range directoryKinds(c, b) {
		if len(k.entries) == 0 {
			continue
		}
		paths := make([]string, len(k.entries))
		for i, d := range k.entries {
			paths[i] = filepath.Join(k.base, d.Path)
		}
		out = append(out, k.variable+"="+strings.Join(paths, ":"))
	}
	return out
}

// makeDirectories creates what the context asks for.
func makeDirectories(c *service.ExecContext, b BaseDirs, id identity) *StartError {
	for _, k := range directoryKinds(c, b) {
		for _, d := range k.entries {
			path := filepath.Join(k.base, d.Path)
			if err := makeDirectory(path, d, k.owned, id); err != nil {
				return &StartError{Stage: fmt.Sprintf("make %s %q", k.directive, path), Err: err, Code: k.code}
			}
			for _, link := range d.Links {
				if err := makeLink(path, filepath.Join(k.base, link)); err != nil {
					return &StartError{Stage: fmt.Sprintf("link %s %q", k.directive, path), Err: err, Code: k.code}
				}
			}
		}
	}
	return nil
}

func makeDirectory(path string, d service.Directory, owned bool, id identity) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	mode := fs.FileMode(d.Mode & 0o777)
	if d.Mode == 0 {
		mode = 0o755
	}
	if d.Mode&0o1000 != 0 {
		mode |= fs.ModeSticky
	}
	if d.Mode&0o2000 != 0 {
		mode |= fs.ModeSetgid
	}
	dir, err := openDirectory(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if owned && id.credential != nil {
		if err := chownTree(dir, int(id.uid), int(id.gid)); err != nil {
			return err
		}
	}
	return dir.Chmod(".", mode)
}

// openDirectory opens what legiond is to change the owner and the mode of. Where
// it lies in a directory of a user's, a link of that user's may be in its place,
// to anywhere; only links of those who may change everything are followed.
func openDirectory(path string) (*os.Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
	}
	if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("it is a link of user %d, which is not followed", st.Uid)
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", target)
	if err != nil {
		return nil, err
	}
	to := string(target[:n])
	if !filepath.IsAbs(to) {
		to = filepath.Join(filepath.Dir(path), to)
	}
	return os.OpenRoot(to)
}

// chownTree gives a directory to a user, with what is in it where the directory
// itself was somebody else's.
func chownTree(dir *os.Root, uid, gid int) error {
	st, err := dir.Lstat(".")
	if err != nil {
		return err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok && int(s.Uid) == uid && int(s.Gid) == gid {
		return nil
	}
	return fs.WalkDir(dir.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return dir.Lchown(path, uid, gid)
	})
}

func makeLink(target, link string) error {
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	rel, err := filepath.Rel(filepath.Dir(link), target)
	if err != nil {
		rel = target
	}
	if have, err := os.Readlink(link); err == nil && have == rel {
		return nil
	}
	return os.Symlink(rel, link)
}

// RemoveRuntime removes the runtime directories of a service that has stopped;
// restart says that it is about to start again (RuntimeDirectoryPreserve=).
func RemoveRuntime(c *service.ExecContext, b BaseDirs, restart bool) error {
	switch c.RuntimePreserve {
	case "yes":
		return nil
	case "restart":
		if restart {
			return nil
		}
	}
	return directoryKinds(c, b)[0].remove()
}

// RemoveDirectories removes the directories of a service that is down; what are
// words such as "cache" of CacheDirectory=.
func RemoveDirectories(c *service.ExecContext, b BaseDirs, what []string) error {
	var errs []error
	for _, k := range directoryKinds(c, b) {
		if slices.Contains(what, strings.ToLower(strings.TrimSuffix(k.directive, "Directory"))) {
			errs = append(errs, k.remove())
		}
	}
	return errors.Join(errs...)
}

func (k directoryKind) remove() error {
	var errs []error
	for _, d := range k.entries {
		for _, link := range d.Links {
			path := filepath.Join(k.base, link)
			if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSymlink != 0 {
				errs = append(errs, os.Remove(path))
			}
		}
		if d.Path != "" && filepath.IsLocal(d.Path) && filepath.Clean(d.Path) != "." {
			errs = append(errs, os.RemoveAll(filepath.Join(k.base, d.Path)))
		}
	}
	return errors.Join(errs...)
}

// own says whether a file belongs to this process's user.
func own(st fs.FileInfo) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}
