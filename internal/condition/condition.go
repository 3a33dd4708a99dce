// Package condition looks whether the conditions and asserts of a unit hold on
// this machine (systemd.unit(5), "Conditions and Asserts").
package condition

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// errUnknown is for a condition that cannot be told here.
var errUnknown = errors.New("not known")

// machine is where the facts are read: below / but in tests.
type machine struct{ root string }

// Holds looks at one condition. It is false for a value that means nothing, and
// true for a condition that Legion cannot tell.
func Holds(c service.Condition) bool { return machine{"/"}.holds(c) }

func (m machine) holds(c service.Condition) bool {
	look, ok := kinds[c.Kind]
	if !ok {
		return true
	}
	holds, err := look(m, c.Value)
	if err != nil {
		return errors.Is(err, errUnknown)
	}
	return holds != c.Negate
}

// kinds are the conditions by their name without Condition or Assert.
var kinds = map[string]func(machine, string) (bool, error){
	"PathExists":             statIs(func(os.FileInfo) bool { return true }),
	"PathIsDirectory":        statIs(os.FileInfo.IsDir),
	"PathIsSocket":           statIs(func(fi os.FileInfo) bool { return fi.Mode()&os.ModeSocket != 0 }),
	"FileNotEmpty":           statIs(func(fi os.FileInfo) bool { return fi.Mode().IsRegular() && fi.Size() > 0 }),
	"FileIsExecutable":       statIs(func(fi os.FileInfo) bool { return fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 }),
	"PathExistsGlob":         machine.glob,
	"PathIsSymbolicLink":     machine.symbolicLink,
	"PathIsMountPoint":       machine.mountPoint,
	"PathIsReadWrite":        machine.readWrite,
	"PathIsEncrypted":        machine.encrypted,
	"DirectoryNotEmpty":      machine.notEmpty,
	"KernelCommandLine":      machine.commandLine,
	"KernelVersion":          machine.kernelVersion,
	"KernelModuleLoaded":     machine.moduleLoaded,
	"Architecture":           machine.architecture,
	"Virtualization":         machine.virtualization,
	"Firmware":               machine.firmware,
	"Host":                   machine.host,
	"Environment":            machine.environment,
	"Credential":             machine.credential,
	"Security":               machine.security,
	"Capability":             machine.capability,
	"ACPower":                machine.acPower,
	"NeedsUpdate":            machine.needsUpdate,
	"FirstBoot":              machine.firstBoot,
	"OSRelease":              machine.osRelease,
	"Memory":                 machine.memory,
	"CPUs":                   machine.cpus,
	"CPUFeature":             machine.cpuFeature,
	"ControlGroupController": machine.controllers,
	"MemoryPressure":         pressure("memory", "full"),
	"IOPressure":             pressure("io", "full"),
	"CPUPressure":            pressure("cpu", "some"),
	"User":                   machine.user,
	"Group":                  machine.group,
}

// path is a file of the machine.
func (m machine) path(name string) string { return filepath.Join(m.root, name) }

// text is a file's content without the white space around it; empty where it
// cannot be read.
func (m machine) text(name string) string {
	data, _ := os.ReadFile(m.path(name))
	return strings.TrimSpace(string(data))
}

func (m machine) exists(name string) bool {
	_, err := os.Stat(m.path(name))
	return err == nil
}

func statIs(is func(os.FileInfo) bool) func(machine, string) (bool, error) {
	return func(m machine, value string) (bool, error) {
		fi, err := os.Stat(m.path(value))
		return err == nil && is(fi), nil
	}
}

func (m machine) glob(value string) (bool, error) {
	found, _ := filepath.Glob(m.path(value))
	return len(found) > 0, nil
}

func (m machine) symbolicLink(value string) (bool, error) {
	fi, err := os.Lstat(m.path(value))
	return err == nil && fi.Mode()&os.ModeSymlink != 0, nil
}

func (m machine) readWrite(value string) (bool, error) {
	return unix.Access(m.path(value), unix.W_OK) == nil, nil
}

func (m machine) notEmpty(value string) (bool, error) {
	entries, err := os.ReadDir(m.path(value))
	return err == nil && len(entries) > 0, nil
}

func (m machine) mountPoint(value string) (bool, error) {
	var a, b unix.Stat_t
	path := m.path(value)
	if unix.Lstat(path, &a) != nil || unix.Lstat(filepath.Dir(path), &b) != nil {
		return false, nil
	}
	return a.Dev != b.Dev || a.Ino == b.Ino, nil
}

// encrypted looks whether the file system's device, or every device below it,
// is one of dm-crypt.
func (m machine) encrypted(value string) (bool, error) {
	var st unix.Stat_t
	if unix.Stat(m.path(value), &st) != nil {
		return false, nil
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	return m.encryptedDevice(dir, 16), nil
}

func (m machine) encryptedDevice(dir string, depth int) bool {
	if strings.HasPrefix(m.text(dir+"/dm/uuid"), "CRYPT-") {
		return true
	}
	below, _ := os.ReadDir(m.path(dir + "/slaves"))
	for _, d := range below {
		if depth == 0 || !m.encryptedDevice(dir+"/slaves/"+d.Name(), depth-1) {
			return false
		}
	}
	return len(below) > 0
}

func (m machine) user(value string) (bool, error) {
	switch value {
	case "@system":
		return os.Getuid() < 1000, nil
	case "root":
		return os.Getuid() == 0, nil
	}
	return m.numbered("/etc/passwd", value, []int{os.Getuid()}), nil
}

func (m machine) group(value string) (bool, error) {
	gids, _ := os.Getgroups()
	return m.numbered("/etc/group", value, append(gids, os.Getgid())), nil
}

// numbered says whether the number, or the number of the name in a file such as
// /etc/passwd, is one of ids.
func (m machine) numbered(file, value string, ids []int) bool {
	id, err := unitfile.ParseUint(value, 32)
	for line := range strings.Lines(m.text(file)) {
		if f := strings.Split(line, ":"); err != nil && len(f) > 2 && f[0] == value {
			id, err = unitfile.ParseUint(f[2], 32)
		}
	}
	for _, have := range ids {
		if err == nil && uint64(have) == id {
			return true
		}
	}
	return false
}
