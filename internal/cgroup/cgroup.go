// Package cgroup keeps the processes of each service together in a cgroup of
// version 2, so that they can be listed, signalled and killed as a whole, and
// so that Legion learns when the last of them has gone. Where there is no
// cgroup to be had it does the same as well as process IDs allow.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mode is how a Tree keeps track of processes.
type Mode string

// The modes, as hostapi.Info names them.
const (
	V2   Mode = "v2"
	None Mode = "none"
)

// Tree is a cgroup and what is below it. Paths are relative to it: a group's
// name, or "group/service".
type Tree struct {
	root   string
	shown  string // root in /proc/PID/cgroup
	reason string

	mu      sync.Mutex
	empty   chan string
	watch   *watcher             // V2
	ids     map[uint64]string    // V2: paths by the inode of their directory
	made    map[string]bool      // V2: what Create has returned; true: made by it, and never killed since
	limited bool                 // V2: Limit was called, by this program or the one before
	tracked map[string][]tracked // None
	awaited map[string]bool      // paths whose end somebody waits for, with no watch
	marks   map[int]seen         // None
	closed  chan struct{}
}

// Lost is what a service does without where there is no cgroup, for its status.
const Lost = "cgroup: its processes are known by session, parent and environment only; one that leaves all three is not stopped with the service, and there are no resource limits"

// Open makes the cgroup root, a directory on a cgroup2 mount. Where the machine
// gives none that can be used, the Tree is in mode None and knows why; an error
// is only for a root that is no absolute path.
func Open(root string) (*Tree, error) {
	if root == "" {
		return Without("no cgroup was given"), nil
	}
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("cannot use cgroup %q: give its absolute directory on the cgroup2 mount", root)
	}
	if err := usable(root); err != nil {
		return Without(err.Error()), nil
	}
	w, err := newWatcher()
	if err != nil {
		return Without("cannot watch cgroups: " + err.Error()), nil
	}
	t := &Tree{root: root, shown: asProcShows(root), watch: w, made: make(map[string]bool), ids: make(map[uint64]string), awaited: make(map[string]bool), empty: make(chan string, 64), closed: make(chan struct{})}
	t.limited = slices.ContainsFunc(v1Controllers, t.has1)
	go t.forward()
	return t, nil
}

// Without is a Tree in mode None; reason says why, for people.
func Without(reason string) *Tree {
	return &Tree{
		reason: reason, empty: make(chan string, 64), closed: make(chan struct{}),
		tracked: make(map[string][]tracked), awaited: make(map[string]bool), marks: make(map[int]seen),
	}
}

// Default is the directory below this process's own cgroup with the given
// name.
func Default(name string) (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	return defaultRoot(string(mounts), string(own), name)
}

func defaultRoot(mountinfo, own, name string) (string, error) {
	mount, mountRoot, ok := findMount(mountinfo)
	if !ok {
		return "", errors.New("no cgroup2 file system is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup) to track services by cgroup")
	}
	for line := range strings.Lines(own) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		path, _ = strings.CutSuffix(path, " (deleted)")
		// In a container the mount shows a part of the hierarchy only.
		if rel, err := filepath.Rel(mountRoot, path); err == nil && filepath.IsLocal(rel) {
			path = rel
		} else if !strings.HasPrefix(path, "/..") {
			path = strings.TrimPrefix(path, "/")
		} else {
			path = ""
		}
		return filepath.Join(mount, path, name), nil
	}
	return "", errors.New("/proc/self/cgroup names no cgroup of version 2")
}

// findMount finds the first cgroup2 mount (proc(5), mountinfo).
func findMount(mountinfo string) (mount, root string, ok bool) {
	for line := range strings.Lines(mountinfo) {
		before, after, found := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if found && strings.HasPrefix(after, "cgroup2 ") && len(fields) >= 5 {
			return unescape(fields[4]), unescape(fields[3]), true
		}
	}
	return "", "", false
}

// unescape undoes the octal escapes of /proc/PID/mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// usable makes the cgroup and tries that processes may be put in it.
func usable(root string) error {
	there := root // as much of the path as exists: elsewhere nothing is made
	var fsStat unix.Statfs_t
	for {
		err := unix.Statfs(there, &fsStat)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || there == "/" {
			return fmt.Errorf("cannot use cgroup %s: %w", root, err)
		}
		there = filepath.Dir(there)
	}
	if fsStat.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("cannot use cgroup %s: not on a cgroup2 file system", root)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("cannot make cgroup: %w", err)
	}
	if err := unix.Access(filepath.Join(root, "cgroup.procs"), unix.W_OK); err != nil {
		return fmt.Errorf("cannot use cgroup %s: no right to put processes in it: %w", root, err)
	}
	return nil
}

// Mode says how processes are tracked, and for None why.
func (t *Tree) Mode() (Mode, string) {
	if t.root == "" {
		return None, t.reason
	}
	return V2, ""
}

// Root is the directory of the tree; empty in mode None.
func (t *Tree) Root() string { return t.root }

// Dir is the directory that stands for a path; empty in mode None.
func (t *Tree) Dir(path string) string {
	if t.root == "" || !filepath.IsLocal(path) {
		return ""
	}
	parts := strings.Split(filepath.Clean(path), "/")
	for i, p := range parts {
		parts[i] = escape(p)
	}
	return filepath.Join(t.root, filepath.Join(parts...))
}

// controllers are the prefixes of the kernel's own files in a cgroup.
var controllers = []string{"cgroup", "cpu", "cpuset", "io", "memory", "pids", "rdma", "misc", "hugetlb", "perf_event", "dmem", "irq"}

// escape keeps names apart from the kernel's files, as systemd does.
func escape(name string) string {
	prefix, _, dot := strings.Cut(name, ".")
	if strings.HasPrefix(name, "_") || dot && slices.Contains(controllers, prefix) {
		return "_" + name
	}
	return name
}

// Create makes the cgroup of a path and returns its directory, empty in mode
// None.
//
// A cgroup that is there and has no process is made anew: since 6.14 Linux also
// kills each process that is born into a cgroup (clone3 with
// CLONE_INTO_CGROUP) on which cgroup.kill was ever used.
func (t *Tree) Create(path string) (string, error) {
	if t.root == "" {
		return "", nil
	}
	dir := t.Dir(path)
	if dir == "" {
		return "", fmt.Errorf("cannot make cgroup %q: not a relative path", path)
	}
	if t.isClean(path) && t.exists(path) {
		return dir, nil
	}
	made, err := makeDir(dir)
	if err == nil && !made && !populated(dir) && !t.inUse(path) && t.Remove(path) == nil {
		// Where that fails, somebody has just come into it: it is in use.
		made, err = makeDir(dir)
	}
	if err != nil {
		return "", fmt.Errorf("cannot make cgroup: %w", err)
	}
	var st unix.Stat_t
	t.mu.Lock()
	defer t.mu.Unlock()
	if unix.Stat(dir, &st) == nil {
		if len(t.ids) > 4096 {
			clear(t.ids) // of cgroups that are gone; it only helps
		}
		t.ids[st.Ino] = path
	}
	t.made[path] = made || t.made[path]
	return dir, nil
}

// makeDir makes a directory, and those that it is in; made says that it was not
// there.
func makeDir(dir string) (made bool, err error) {
	err = unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.ENOENT) {
		if err = os.MkdirAll(filepath.Dir(dir), 0o755); err == nil {
			err = unix.Mkdir(dir, 0o755)
		}
	}
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EEXIST):
		return false, nil
	}
	return false, &os.PathError{Op: "mkdir", Path: dir, Err: err}
}

// ByID finds the path whose cgroup has, or lately had, the inode.
func (t *Tree) ByID(id uint64) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	path, ok := t.ids[id]
	return path, ok
}

func (t *Tree) isClean(path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.made[path]
}

// spoil notes that a path and all below it were killed, or removed.
func (t *Tree) spoil(path string, removed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.made {
		if p == path || path == "." || strings.HasPrefix(p, path+"/") {
			t.made[p] = false
			if removed {
				delete(t.made, p)
			}
		}
	}
}

// inUse says whether somebody has been given a cgroup inside of the path's.
func (t *Tree) inUse(path string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.made {
		if strings.HasPrefix(p, path+"/") {
			return true
		}
	}
	return false
}

// Pids lists the processes of a path and of all below it. A path that does not
// exist has none.
func (t *Tree) Pids(path string) ([]int, error) {
	if t.root == "" {
		return t.members(path), nil
	}
	return within(t.Dir(path))
}

// within lists the processes of a cgroup and of all below it.
func within(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		if !d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for f := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes of cgroup %s: %w", dir, err)
	}
	return pids, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// Populated says whether any process is left in a path or below it. Where one
// is, Empty will tell when there is none any more.
func (t *Tree) Populated(path string) bool {
	if t.root == "" {
		return len(t.members(path)) > 0
	}
	dir := t.Dir(path)
	if !populated(dir) {
		return false
	}
	// Not before: as a rule a service is one process, of whose end legiond hears
	// at once, and then needs no watch.
	added, err := t.watch.add(path, dir)
	if err != nil {
		t.outliveAll(path, dir)
	}
	return !added || populated(dir)
}

// outliveAll is for a kernel that gives no watch (fs.inotify.max_user_watches).
func (t *Tree) outliveAll(path, dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.awaited[path] {
		return
	}
	t.awaited[path] = true
	go func() {
		for populated(dir) {
			pids, _ := t.Pids(path)
			for _, pid := range pids {
				t.outlive(pid)
			}
			select {
			case <-t.closed:
				return
			case <-time.After(10 * time.Millisecond): // for those that are not listed, as of another PID namespace
			}
		}
		t.mu.Lock()
		delete(t.awaited, path)
		t.mu.Unlock()
		t.tell(path)
	}()
}

// populated asks the kernel with three system calls: it lies on the way from the
// end of a process to the start of the next.
func populated(dir string) bool {
	fd, err := unix.Open(dir+"/cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var buf [256]byte
	n, err := unix.Read(fd, buf[:])
	return err == nil && bytes.Contains(buf[:n], []byte("populated 1"))
}

// Signal sends a signal to every process of a path, also to those that are
// born meanwhile, and returns how many it reached. except is left out.
func (t *Tree) Signal(path string, sig syscall.Signal, except ...int) (int, error) {
	if t.root == "" {
		defer func() {
			t.mu.Lock()
			t.await(path)
			t.mu.Unlock()
		}()
	}
	sent := make(map[int]bool)
	var failed error
	for range 10 { // a fork bomb is for Kill
		pids, err := t.Pids(path)
		if err != nil {
			return len(sent), err
		}
		news := false
		for _, pid := range pids {
			if sent[pid] || slices.Contains(except, pid) {
				continue
			}
			news = true
			switch err := unix.Kill(pid, sig); {
			case err == nil:
				sent[pid] = true
				if sig != unix.SIGKILL && sig != unix.SIGCONT {
					_ = unix.Kill(pid, unix.SIGCONT) // a stopped process could not act on it
				}
			case !errors.Is(err, unix.ESRCH):
				sent[pid] = true
				failed = fmt.Errorf("cannot send %s to process %d: %w", unix.SignalName(sig), pid, err)
			}
		}
		if !news {
			break
		}
	}
	return len(sent), failed
}

// Kill kills every process of a path at once.
func (t *Tree) Kill(path string) error {
	if t.root != "" {
		t.spoil(path, false)
		err := os.WriteFile(filepath.Join(t.Dir(path), "cgroup.kill"), []byte("1"), 0)
		if err == nil || ignoreGone(err) == nil && !t.exists(path) {
			return nil
		}
	}
	// Before Linux 5.14 there is no cgroup.kill.
	_, err := t.Signal(path, unix.SIGKILL)
	return err
}

func (t *Tree) exists(path string) bool {
	return unix.Access(t.Dir(path), unix.F_OK) == nil
}

// Remove removes the cgroup of a path and all below it; there must be no
// process left.
func (t *Tree) Remove(path string) error {
	if t.root == "" {
		t.mu.Lock()
		delete(t.tracked, path)
		t.mu.Unlock()
		return nil
	}
	dir := t.Dir(path)
	if dir == "" {
		return fmt.Errorf("cannot remove cgroup %q: not a relative path", path)
	}
	t.watch.remove(path)
	t.spoil(path, true)
	t.unlimit(path)
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return ignoreGone(err)
	})
	for _, d := range slices.Backward(dirs) {
		if e := unix.Rmdir(d); e != nil && !errors.Is(e, unix.ENOENT) && err == nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("cannot remove cgroup %s: %w", dir, err)
	}
	return nil
}

// Of finds the path whose cgroup a process is in, for a message that came from
// it: the innermost of paths that holds it.
func (t *Tree) Of(pid int, paths []string) (string, bool) {
	if t.root == "" {
		for _, p := range paths {
			if slices.Contains(t.members(p), pid) {
				return p, true
			}
		}
		return "", false
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return "", false
	}
	best, found := "", false
	for line := range strings.Lines(string(data)) {
		in, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		for _, p := range paths {
			dir := t.shown + strings.TrimPrefix(t.Dir(p), t.root)
			if (in == dir || strings.HasPrefix(in, dir+"/")) && len(p) >= len(best) {
				best, found = p, true
			}
		}
	}
	return best, found
}

// asProcShows is a directory as /proc/PID/cgroup shows it.
func asProcShows(dir string) string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return dir
	}
	mount, mountRoot, _ := findMount(string(mounts))
	rel, err := filepath.Rel(mount, dir)
	if err != nil {
		return dir
	}
	return filepath.Join(mountRoot, rel)
}

// Empty tells the paths that have run out of processes. A path may be told more
// than once, and Populated says how it is now.
func (t *Tree) Empty() <-chan string { return t.empty }

// Close ends the watch; cgroups and processes stay.
func (t *Tree) Close() {
	select {
	case <-t.closed:
	default:
		close(t.closed)
		if t.watch != nil {
			t.watch.close()
		}
	}
}
