package unitdir

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/unitfile"
)

// ThisMachine fills in what specifiers stand for here. What cannot be found
// stays empty: only a unit that asks for it has a problem.
func ThisMachine() unitfile.Options {
	o := unitfile.Options{
		Root: os.Geteuid() == 0, UID: os.Geteuid(), GID: os.Getegid(),
		MachineID: line("/etc/machine-id"),
		BootID:    strings.ReplaceAll(line("/proc/sys/kernel/random/boot_id"), "-", ""),
		Shell:     os.Getenv("SHELL"), Home: os.Getenv("HOME"),
	}
	o.Hostname, _ = os.Hostname()
	if u, err := user.Current(); err == nil {
		o.User, o.Home = u.Username, u.HomeDir
		if g, err := user.LookupGroupId(u.Gid); err == nil {
			o.Group = g.Name
		}
	}
	if o.Group == "" {
		o.Group = strconv.Itoa(o.GID)
	}
	if o.Shell == "" {
		o.Shell = "/bin/sh"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		o.KernelRelease = unix.ByteSliceToString(u.Release[:])
		machine := unix.ByteSliceToString(u.Machine[:])
		if name, ok := architectures[machine]; ok {
			machine = name
		}
		o.Architecture = machine
	}
	if !o.Root {
		userDirectories(&o)
	}
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		o.OSRelease = map[string]string{}
		if env, err := unitfile.ParseEnvironmentFile(data); err == nil {
			for _, e := range env {
				name, value, _ := strings.Cut(e, "=")
				o.OSRelease[name] = value
			}
		}
		break
	}
	return o
}

// architectures are systemd's names where they are not the kernel's.
var architectures = map[string]string{"x86_64": "x86-64", "i686": "x86", "i386": "x86", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm"}

// userDirectories are the XDG directories, which systemd's user manager has in
// the place of /run, /etc and /var.
func userDirectories(o *unitfile.Options) {
	xdg := func(name, fallback string) string {
		if d := os.Getenv(name); filepath.IsAbs(d) {
			return d
		}
		return filepath.Join(o.Home, fallback)
	}
	o.RuntimeDir = os.Getenv("XDG_RUNTIME_DIR")
	o.StateDir = xdg("XDG_STATE_HOME", ".local/state")
	o.CacheDir = xdg("XDG_CACHE_HOME", ".cache")
	o.LogsDir = filepath.Join(o.StateDir, "log")
	o.ConfigDir = xdg("XDG_CONFIG_HOME", ".config")
}

// line is the first line of a small file, empty if there is none.
func line(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	text, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(text)
}
