package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// hasMounts says whether the sandbox needs a mount namespace.
func hasMounts(s *service.Sandbox) bool {
	return !s.NoMounts && (s.PrivateTmp || s.PrivateDevices || s.PrivateMounts || s.ProtectSystem != "" || s.ProtectHome != "" ||
		s.ProtectControlGroups || s.ProtectKernelModules || s.ProtectKernelTunables || s.ProtectKernelLogs ||
		s.ProtectProc != "" || s.ProcSubset != "" || s.MountAPIVFS || s.MountFlags != "" ||
		len(s.ReadWritePaths)+len(s.ReadOnlyPaths)+len(s.InaccessiblePaths)+len(s.ExecPaths)+len(s.NoExecPaths)+
			len(s.Binds)+len(s.TemporaryFileSystem) > 0)
}

// how is what a place in the new mount namespace becomes.
type how int

const (
	readOnly how = iota
	asOnHost     // writable and executable as it was
	noExec
	mayExec
	inaccessible
	shown
	memory
	devices
	processes
)

// place is one entry of the mount namespace.
type place struct {
	how    how
	path   string // in the root of the service
	source string // shown
	// readOnly and shallow are of what is shown; options of a memory file
	// system.
	readOnly, shallow bool
	options           string
	optional          bool
	tree              int // asOnHost, shown: taken before anything is changed
}

// mountPlan lists the places, outer ones first.
func mountPlan(s *service.Sandbox, root string, writable []string, tmp [2]string) []place {
	var out []place
	add := func(h how, paths ...string) {
		for _, p := range paths {
			out = append(out, place{how: h, path: p, optional: true})
		}
	}
	given := func(h how, paths []string) {
		for _, p := range paths {
			p, optional := strings.CutPrefix(p, "-")
			p, below := strings.CutPrefix(p, "+")
			if !below && root != "" {
				rel, err := filepath.Rel(root, p)
				if err != nil || !filepath.IsLocal(rel) {
					continue // out of the service's sight
				}
				p = "/" + rel
			}
			out = append(out, place{how: h, path: filepath.Clean(p), optional: optional})
		}
	}
	if s.MountAPIVFS && root != "" {
		for _, p := range []string{"/proc", "/sys", "/dev", "/run"} {
			out = append(out, place{how: shown, path: p, source: p, optional: true})
		}
	}
	for _, b := range s.Binds {
		out = append(out, place{how: shown, path: b.Target, source: b.Source, readOnly: b.ReadOnly, shallow: b.Shallow, optional: b.Optional})
	}
	for _, t := range s.TemporaryFileSystem {
		p, options, _ := strings.Cut(t, ":")
		out = append(out, place{how: memory, path: filepath.Clean(p), options: options})
	}
	if s.PrivateTmp {
		out = append(out, place{how: shown, path: "/tmp", source: tmp[0], optional: true}, place{how: shown, path: "/var/tmp", source: tmp[1], optional: true})
	}
	if s.PrivateDevices {
		add(devices, "/dev")
	}
	if s.ProtectProc != "" || s.ProcSubset != "" {
		add(processes, "/proc")
	}
	switch s.ProtectSystem {
	case "strict":
		add(readOnly, "/")
		add(asOnHost, "/proc", "/sys")
		if !s.PrivateDevices {
			add(asOnHost, "/dev")
		}
	case "full":
		add(readOnly, "/usr", "/boot", "/efi", "/etc")
	case "yes":
		add(readOnly, "/usr", "/boot", "/efi")
	}
	homes := []string{"/home", "/root", "/run/user"}
	switch s.ProtectHome {
	case "yes":
		add(inaccessible, homes...)
	case "read-only":
		add(readOnly, homes...)
	case "tmpfs":
		for _, h := range homes {
			out = append(out, place{how: memory, path: h, options: "ro", optional: true})
		}
	}
	if s.ProtectKernelTunables {
		add(readOnly, "/proc/sys", "/sys", "/proc/sysrq-trigger", "/proc/latency_stats", "/proc/acpi", "/proc/timer_stats", "/proc/fs", "/proc/irq")
		if !s.ProtectControlGroups {
			add(asOnHost, "/sys/fs/cgroup")
		}
		add(inaccessible, "/proc/kallsyms", "/proc/kcore")
	}
	if s.ProtectControlGroups {
		add(readOnly, "/sys/fs/cgroup")
	}
	if s.ProtectKernelModules {
		add(inaccessible, "/usr/lib/modules")
	}
	if s.ProtectKernelLogs {
		add(inaccessible, "/proc/kmsg", "/dev/kmsg")
	}
	add(asOnHost, writable...)
	given(noExec, s.NoExecPaths)
	given(mayExec, s.ExecPaths)
	given(readOnly, s.ReadOnlyPaths)
	given(asOnHost, s.ReadWritePaths)
	given(inaccessible, s.InaccessiblePaths)
	slices.SortStableFunc(out, func(a, b place) int { return depth(a.path) - depth(b.path) })
	return out
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

// namespaceStages make the namespaces of the sandbox.
func (s *Spec) namespaceStages() []stage {
	x := s.Sandbox
	var out []stage
	unshare := func(want bool, flag int, name string) {
		if want {
			out = append(out, stage{"make a " + name + " namespace", CodeNamespace, func() error { return unix.Unshare(flag) }})
		}
	}
	unshare(x.PrivateNetwork && s.NetNS == "", unix.CLONE_NEWNET, "network")
	if x.PrivateNetwork && s.NetNS == "" {
		out = append(out, stage{"set the loopback device up", CodeNetwork, loopbackUp})
	}
	unshare(x.PrivateIPC && s.IPCNS == "", unix.CLONE_NEWIPC, "IPC")
	unshare(x.ProtectHostname, unix.CLONE_NEWUTS, "UTS")
	if !hasMounts(x) {
		return out
	}
	unshare(true, unix.CLONE_NEWNS, "mount")
	out = append(out, stage{"keep the mounts from the host", CodeNamespace, func() error {
		flags := map[string]uintptr{"shared": unix.MS_SHARED, "private": unix.MS_PRIVATE}[x.MountFlags]
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil || flags == 0 {
			return err
		}
		return unix.Mount("", "/", "", unix.MS_REC|flags, "")
	}})
	plan := mountPlan(x, s.Root, s.Writable, s.Tmp)
	for i := range plan {
		p := &plan[i]
		if p.how == asOnHost || p.how == shown {
			out = append(out, stage{fmt.Sprintf("take hold of %q", p.from(s.Root)), CodeNamespace, func() error { return p.take(s.Root) }})
		}
	}
	for i := range plan {
		p := &plan[i]
		out = append(out, stage{fmt.Sprintf("set up %q in the mount namespace", p.path), CodeNamespace, func() error { return p.put(s.Root, x) }})
	}
	return out
}

func (p *place) from(root string) string {
	if p.how == shown {
		return p.source
	}
	return filepath.Join(root, p.path)
}

// take keeps the tree as the host shows it.
func (p *place) take(root string) error {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE)
	if p.shallow {
		flags &^= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, p.from(root), flags)
	p.tree = tree
	if p.optional && absent(err) {
		return nil
	}
	return err
}

func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// put makes the place what it is to be.
func (p *place) put(root string, x *service.Sandbox) error {
	if root == "" {
		root = "/"
	}
	if p.tree < 0 {
		return nil // optional, and not there
	}
	if p.how == shown {
		if err := makeTarget(filepath.Join(root, p.path), p.tree); err != nil && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	top, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	at, err := unix.Openat2(top, p.path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if p.optional && absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	switch p.how {
	case readOnly:
		return change(at, p.path == "/" && root == "/", unix.MOUNT_ATTR_RDONLY, 0)
	case noExec:
		return change(at, p.path == "/" && root == "/", unix.MOUNT_ATTR_NOEXEC, 0)
	case mayExec:
		return change(at, p.path == "/" && root == "/", 0, unix.MOUNT_ATTR_NOEXEC)
	case asOnHost, shown:
		defer unix.Close(p.tree)
		if p.readOnly {
			if err := set(p.tree, unix.MOUNT_ATTR_RDONLY, 0); err != nil {
				return err
			}
		}
		return move(p.tree, at)
	case inaccessible:
		return hide(at)
	case memory:
		return inMemory(at, p.options)
	case devices:
		return deviceNodes(at)
	default:
		return processTable(at, x)
	}
}

// makeTarget makes what is missing for a bind mount: a directory, or a file for
// anything else.
func makeTarget(path string, tree int) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o444)
	if err != nil {
		return err
	}
	return f.Close()
}

func set(tree int, add, remove uint64) error {
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: add, Attr_clr: remove})
}

func move(tree, at int) error {
	return unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// change gives a place, which need not be a mount yet, other attributes. The
// root itself is one already and cannot be mounted over.
func change(at int, root bool, add, remove uint64) error {
	if root {
		return unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: add, Attr_clr: remove})
	}
	tree, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := set(tree, add, remove); err != nil {
		return err
	}
	return move(tree, at)
}

// hide covers a directory with an empty one without any permission, and
// anything else with a device that may not be opened.
func hide(at int) error {
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return inMemory(at, "ro,mode=000,nr_inodes=1")
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	if err := set(tree, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID, 0); err != nil {
		return err
	}
	return move(tree, at)
}

// inMemory mounts an empty tmpfs(5). Options that are flags of the mount are
// told apart from those of the file system.
func inMemory(at int, options string) error {
	flags := uintptr(unix.MS_NODEV | unix.MS_NOSUID | unix.MS_STRICTATIME)
	data := []string{"mode=0755"}
	for o := range strings.SplitSeq(options, ",") {
		switch o {
		case "", "rw", "nodev", "nosuid":
		case "ro":
			flags |= unix.MS_RDONLY
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "dev":
			flags &^= unix.MS_NODEV
		case "suid":
			flags &^= unix.MS_NOSUID
		default:
			data = append(data, o)
		}
	}
	return unix.Mount("tmpfs", fmt.Sprintf("/proc/self/fd/%d", at), "tmpfs", flags, strings.Join(data, ","))
}

// processTable mounts a /proc that shows less (proc(5), hidepid and subset).
func processTable(at int, x *service.Sandbox) error {
	var data []string
	if hide := map[string]string{"noaccess": "1", "invisible": "2", "ptraceable": "4"}[x.ProtectProc]; hide != "" {
		data = append(data, "hidepid="+hide)
	}
	if x.ProcSubset == "pid" {
		data = append(data, "subset=pid")
	}
	return unix.Mount("proc", fmt.Sprintf("/proc/self/fd/%d", at), "proc", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, strings.Join(data, ","))
}

// deviceNodes covers /dev with the devices that are none of the hardware.
func deviceNodes(at int) error {
	trees := map[string]int{}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "pts", "shm", "mqueue", "hugepages", "log"} {
		if tree, err := unix.OpenTree(at, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err == nil {
			trees[name] = tree
			defer unix.Close(tree)
		}
	}
	link := fmt.Sprintf("/proc/self/fd/%d", at)
	if err := unix.Mount("tmpfs", link, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_STRICTATIME, "mode=0755,size=4m"); err != nil {
		return err
	}
	// The descriptor is still that of what lies below.
	dir, err := os.Readlink(link)
	if err != nil {
		return err
	}
	for name, tree := range trees {
		path := filepath.Join(dir, name)
		if err := makeTarget(path, tree); err != nil {
			return err
		}
		if err := unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"core": "/proc/kcore", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return unix.MountSetattr(unix.AT_FDCWD, dir, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
