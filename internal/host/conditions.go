package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// unfulfilled looks at the group's conditions (systemd.unit(5), "Conditions
// and Asserts"): skip is the condition for which the start is left out, failed
// the assertion for which it fails.
func (h *Host) unfulfilled(g *group) (skip, failed string) {
	anyTrigger, triggered := false, false
	for _, c := range g.spec.Conditions {
		holds, known := condition(c)
		if !known {
			holds = true
		}
		if c.Trigger {
			anyTrigger = true
			triggered = triggered || holds
			continue
		}
		if holds {
			continue
		}
		not := ""
		if c.Negate {
			not = "!"
		}
		if c.Assert {
			return "", fmt.Sprintf("Assert%s=%s%s does not hold", c.Kind, not, c.Value)
		}
		return fmt.Sprintf("Condition%s=%s%s does not hold", c.Kind, not, c.Value), ""
	}
	if anyTrigger && !triggered {
		return "none of the conditions marked with | holds", ""
	}
	return "", ""
}

// condition looks at one; known is false for those that Legion cannot tell.
func condition(c service.Condition) (holds, known bool) {
	stat := func() (os.FileInfo, bool) {
		fi, err := os.Stat(c.Value)
		return fi, err == nil
	}
	known = true
	switch c.Kind {
	case "PathExists":
		_, holds = stat()
	case "PathExistsGlob":
		found, _ := filepath.Glob(c.Value)
		holds = len(found) > 0
	case "PathIsDirectory":
		fi, ok := stat()
		holds = ok && fi.IsDir()
	case "PathIsSymbolicLink":
		fi, err := os.Lstat(c.Value)
		holds = err == nil && fi.Mode()&os.ModeSymlink != 0
	case "PathIsMountPoint":
		holds = mountPoint(c.Value)
	case "PathIsReadWrite":
		holds = unix.Access(c.Value, unix.W_OK) == nil
	case "DirectoryNotEmpty":
		entries, err := os.ReadDir(c.Value)
		holds = err == nil && len(entries) > 0
	case "FileNotEmpty":
		fi, ok := stat()
		holds = ok && fi.Mode().IsRegular() && fi.Size() > 0
	case "FileIsExecutable":
		fi, ok := stat()
		holds = ok && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
	case "KernelCommandLine":
		data, _ := os.ReadFile("/proc/cmdline")
		for _, w := range strings.Fields(string(data)) {
			name, _, _ := strings.Cut(w, "=")
			holds = holds || w == c.Value || name == c.Value
		}
	case "User":
		holds = c.Value == fmt.Sprint(os.Getuid()) || c.Value == "root" && os.Getuid() == 0 || c.Value == "@system" && os.Getuid() < 1000
	default:
		return true, false
	}
	return holds != c.Negate, known
}

func mountPoint(path string) bool {
	var a, b unix.Stat_t
	if unix.Lstat(path, &a) != nil || unix.Lstat(filepath.Dir(path), &b) != nil {
		return false
	}
	return a.Dev != b.Dev || a.Ino == b.Ino
}
