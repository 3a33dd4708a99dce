package condition

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/unitfile"
)

func (m machine) commandLine(value string) (bool, error) {
	for _, w := range strings.Fields(m.text("/proc/cmdline")) {
		name, _, _ := strings.Cut(w, "=")
		if w == value || name == value {
			return true, nil
		}
	}
	return false, nil
}

func (m machine) kernelVersion(value string) (bool, error) {
	return versions(m.text("/proc/sys/kernel/osrelease"), value)
}

func (m machine) moduleLoaded(value string) (bool, error) {
	return m.exists("/sys/module/" + strings.ReplaceAll(value, "-", "_")), nil
}

// architectures are systemd's names where they are not Go's.
var architectures = map[string]string{"amd64": "x86-64", "386": "x86", "ppc64le": "ppc64-le", "mips64le": "mips64-le", "mipsle": "mips-le", "loong64": "loongarch64"}

func (m machine) architecture(value string) (bool, error) {
	own := runtime.GOARCH
	if name, ok := architectures[own]; ok {
		own = name
	}
	return value == "native" || value == own, nil
}

func (m machine) firmware(value string) (bool, error) {
	if value == "uefi" {
		return m.exists("/sys/firmware/efi"), nil
	}
	if value == "device-tree" {
		return m.exists("/sys/firmware/devicetree"), nil
	}
	name, rest, _ := strings.Cut(value, "(")
	inner, closed := strings.CutSuffix(rest, ")")
	switch {
	case closed && name == "device-tree-compatible":
		return slices.Contains(strings.Split(m.text("/proc/device-tree/compatible"), "\x00"), inner), nil
	case closed && name == "smbios-field":
		i := strings.IndexAny(inner, "<>=!")
		if i < 1 {
			return false, fmt.Errorf("%q compares nothing", value)
		}
		field := strings.TrimSpace(inner[:i])
		op, want := operator(inner[i:])
		have := m.text("/sys/class/dmi/id/" + filepath.Base(field))
		if op == "=" || op == "!=" {
			ok, err := path.Match(want, have)
			return ok == (op == "="), err
		}
		return accepts(op, compareVersions(have, want)), nil
	}
	return false, fmt.Errorf("%q is no firmware", value)
}

func (m machine) host(value string) (bool, error) {
	if id := m.text("/etc/machine-id"); id != "" && strings.EqualFold(strings.ReplaceAll(value, "-", ""), id) {
		return true, nil
	}
	return path.Match(strings.ToLower(value), strings.ToLower(m.text("/proc/sys/kernel/hostname")))
}

func (m machine) environment(value string) (bool, error) {
	name, want, compared := strings.Cut(value, "=")
	have, ok := os.LookupEnv(name)
	return ok && (!compared || have == want), nil
}

func (m machine) credential(value string) (bool, error) {
	if value == "" || strings.Contains(value, "/") {
		return false, fmt.Errorf("%q is no name of a credential", value)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && m.exists(filepath.Join(dir, value)) {
		return true, nil
	}
	return m.exists("/run/credentials/@system/" + value), nil
}

func (m machine) security(value string) (bool, error) {
	switch value {
	case "selinux":
		return m.exists("/sys/fs/selinux/enforce"), nil
	case "apparmor":
		return strings.HasPrefix(m.text("/sys/module/apparmor/parameters/enabled"), "Y"), nil
	case "tomoyo":
		return m.exists("/sys/kernel/security/tomoyo/version"), nil
	case "ima":
		return m.exists("/sys/kernel/security/ima"), nil
	case "smack":
		return m.exists("/sys/fs/smackfs"), nil
	case "audit":
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_AUDIT)
		if err == nil {
			unix.Close(fd)
		}
		return err == nil, nil
	case "uefi-secureboot":
		data, _ := os.ReadFile(m.path("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"))
		return len(data) == 5 && data[4] == 1, nil
	case "tpm2":
		return m.notEmpty("/sys/class/tpmrm")
	}
	return false, errUnknown
}

func (m machine) capability(value string) (bool, error) {
	n := slices.IndexFunc(unitfile.Capabilities, func(c string) bool { return strings.EqualFold(c, value) })
	if n < 0 {
		return false, fmt.Errorf("%q is no capability", value)
	}
	set, err := strconv.ParseUint(m.field("/proc/self/status", "CapBnd:"), 16, 64)
	return set&(1<<n) != 0, err
}

// field is what stands behind a name at the beginning of a line.
func (m machine) field(file, name string) string {
	for line := range strings.Lines(m.text(file)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// acPower: a machine without a power supply that it could lose is on mains.
func (m machine) acPower(value string) (bool, error) {
	want, err := unitfile.ParseBool(value)
	if err != nil {
		return false, err
	}
	mains, battery := false, false
	supplies, _ := filepath.Glob(m.path("/sys/class/power_supply/*"))
	for _, s := range supplies {
		dir := "/sys/class/power_supply/" + filepath.Base(s)
		if m.text(dir+"/type") == "Battery" {
			battery = battery || m.text(dir+"/scope") != "Device" && m.text(dir+"/status") == "Discharging"
		} else {
			mains = mains || m.text(dir+"/online") == "1"
		}
	}
	return (mains || !battery) == want, nil
}

// needsUpdate: /usr is newer than the last update of /etc or /var.
func (m machine) needsUpdate(value string) (bool, error) {
	if value != "/etc" && value != "/var" {
		return false, fmt.Errorf("%q is neither /etc nor /var", value)
	}
	usr, err := os.Stat(m.path("/usr"))
	if err != nil || unix.Access(m.path(value), unix.W_OK) != nil {
		return false, nil
	}
	stamp := time.Time{}
	if fi, err := os.Stat(m.path(value + "/.updated")); err == nil {
		stamp = fi.ModTime()
	}
	return usr.ModTime().After(stamp), nil
}

func (m machine) firstBoot(value string) (bool, error) {
	want, err := unitfile.ParseBool(value)
	return m.exists("/run/systemd/first-boot") == want, err
}

func (m machine) osRelease(value string) (bool, error) {
	data, err := os.ReadFile(m.path("/etc/os-release"))
	if err != nil {
		data, _ = os.ReadFile(m.path("/usr/lib/os-release"))
	}
	entries, _ := unitfile.ParseEnvironmentFile(data)
	have := map[string]string{}
	for _, e := range entries {
		name, v, _ := strings.Cut(e, "=")
		have[name] = v
	}
	for _, w := range words(value) {
		i := strings.IndexAny(w, "<>=!")
		if i < 1 {
			return false, fmt.Errorf("%q compares nothing", w)
		}
		op, want := operator(w[i:])
		v, want := have[w[:i]], strings.Trim(want, `"'`)
		result := compareVersions(v, want)
		if op == "=" || op == "!=" {
			result = cmp.Compare(v, want)
		}
		if !accepts(op, result) {
			return false, nil
		}
	}
	return true, nil
}

func (m machine) memory(value string) (bool, error) {
	op, want := operator(value)
	bytes, err := unitfile.ParseSize(want, 1024)
	if err != nil {
		return false, err
	}
	kib, err := strconv.ParseUint(strings.TrimSuffix(m.field("/proc/meminfo", "MemTotal:"), " kB"), 10, 64)
	return accepts(cmp.Or(op, ">="), cmp.Compare(kib*1024, bytes)), err
}

func (m machine) cpus(value string) (bool, error) {
	op, want := operator(value)
	n, err := unitfile.ParseUint(want, 31)
	return accepts(cmp.Or(op, ">="), cmp.Compare(uint64(runtime.NumCPU()), n)), err
}

func (m machine) cpuFeature(value string) (bool, error) {
	_, flags, _ := strings.Cut(m.field("/proc/cpuinfo", "flags"), ":")
	return slices.Contains(strings.Fields(flags), strings.ToLower(value)), nil
}

func (m machine) controllers(value string) (bool, error) {
	const root = "/sys/fs/cgroup/cgroup.controllers"
	switch unified := m.exists(root); {
	case value == "v2":
		return unified, nil
	case value == "v1":
		return !unified, nil
	case unified:
		have := strings.Fields(m.text(root))
		return !slices.ContainsFunc(strings.Fields(value), func(c string) bool { return !slices.Contains(have, c) }), nil
	}
	for _, c := range strings.Fields(value) {
		if f := strings.Fields(m.field("/proc/cgroups", c+"\t")); len(f) < 3 || f[2] != "1" {
			return false, nil
		}
	}
	return true, nil
}

// windows are the averages that the kernel keeps, by how they are asked for.
var windows = map[string]string{"": "avg300=", "10s": "avg10=", "10sec": "avg10=", "1min": "avg60=", "1m": "avg60=", "60s": "avg60=", "5min": "avg300=", "5m": "avg300=", "300s": "avg300="}

// pressure says whether the machine's is no higher than a threshold. That of a
// single slice is not told.
func pressure(resource, kind string) func(machine, string) (bool, error) {
	return func(m machine, value string) (bool, error) {
		if strings.Contains(value, ":") || !m.exists("/proc/pressure/"+resource) {
			return false, errUnknown
		}
		threshold, window, _ := strings.Cut(value, "/")
		most, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(threshold), "%"), 64)
		if err != nil {
			return false, err
		}
		average, ok := windows[strings.TrimSpace(window)]
		if !ok {
			return false, fmt.Errorf("no pressure is kept over %q", window)
		}
		for _, f := range strings.Fields(m.field("/proc/pressure/"+resource, kind)) {
			if v, ok := strings.CutPrefix(f, average); ok {
				now, err := strconv.ParseFloat(v, 64)
				return now <= most, err
			}
		}
		return false, errUnknown
	}
}
