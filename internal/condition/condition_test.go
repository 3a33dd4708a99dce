package condition

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"legion.dev/legion/internal/service"
)

// elsewhere is a machine of files.
func elsewhere(t *testing.T, files map[string]string) machine {
	t.Helper()
	m := machine{t.TempDir()}
	for name, text := range files {
		path := m.path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

var physical = map[string]string{
	"/etc/hosts":                              "127.0.0.1 localhost\n",
	"/etc/empty":                              "",
	"/etc/machine-id":                         "0123456789abcdef0123456789abcdef\n",
	"/etc/os-release":                         "ID=debian\nVERSION_ID=\"12\"\n",
	"/etc/group":                              "root:x:0:\nnobody-has-this:x:4000000:\n",
	"/proc/1/environ":                         "PATH=/bin\x00",
	"/proc/cmdline":                           "root=/dev/sda1 quiet legion.debug=1\n",
	"/proc/cpuinfo":                           "processor\t: 0\nflags\t\t: fpu sse2 avx\n",
	"/proc/meminfo":                           "MemTotal:        8000000 kB\nMemFree: 1 kB\n",
	"/proc/pressure/memory":                   "some avg10=50.00 avg60=40.00 avg300=30.00 total=1\nfull avg10=9.00 avg60=5.00 avg300=1.00 total=1\n",
	"/proc/self/status":                       "Name:\tx\nCapBnd:\t0000000000200001\n",
	"/proc/sys/kernel/hostname":               "web-1\n",
	"/proc/sys/kernel/osrelease":              "6.1.0-18-amd64\n",
	"/sys/class/power_supply/AC/type":         "Mains\n",
	"/sys/class/power_supply/AC/online":       "0\n",
	"/sys/class/power_supply/BAT0/type":       "Battery\n",
	"/sys/class/power_supply/BAT0/status":     "Discharging\n",
	"/sys/fs/cgroup/cgroup.controllers":       "cpu memory pids\n",
	"/sys/module/br_netfilter/refcnt":         "0\n",
	"/sys/module/apparmor/parameters/enabled": "Y\n",
}

func TestConditions(t *testing.T) {
	m := elsewhere(t, physical)
	for _, c := range []struct {
		kind, value string
		want        bool
	}{
		{"PathExists", "/etc/hosts", true},
		{"PathExists", "/etc/nothing", false},
		{"PathExistsGlob", "/etc/h*", true},
		{"PathIsDirectory", "/etc", true},
		{"PathIsDirectory", "/etc/hosts", false},
		{"PathIsSocket", "/etc/hosts", false},
		{"PathIsMountPoint", "/etc", false},
		{"PathIsEncrypted", "/etc", false},
		{"FileNotEmpty", "/etc/hosts", true},
		{"FileNotEmpty", "/etc/empty", false},
		{"FileIsExecutable", "/etc/hosts", true},
		{"DirectoryNotEmpty", "/etc", true},
		{"KernelCommandLine", "quiet", true},
		{"KernelCommandLine", "legion.debug", true},
		{"KernelCommandLine", "legion.debug=1", true},
		{"KernelCommandLine", "legion", false},
		{"KernelVersion", "6.1.*", true},
		{"KernelVersion", ">=5.10", true},
		{"KernelVersion", ">= 5.10 < 6.2", true},
		{"KernelVersion", "<6.1", false},
		{"KernelModuleLoaded", "br-netfilter", true},
		{"KernelModuleLoaded", "nothing", false},
		{"Architecture", "native", true},
		{"Architecture", "vax", false},
		{"Virtualization", "no", true},
		{"Virtualization", "yes", false},
		{"Virtualization", "container", false},
		{"Virtualization", "vm", false},
		{"Host", "WEB-*", true},
		{"Host", "01234567-89ab-cdef-0123-456789abcdef", true},
		{"Host", "db-*", false},
		{"Security", "apparmor", true},
		{"Security", "selinux", false},
		{"Security", "tpm2", false},
		{"Capability", "CAP_CHOWN", true},
		{"Capability", "CAP_SYS_ADMIN", true},
		{"Capability", "CAP_SYS_RAWIO", false},
		{"Capability", "CAP_NONSENSE", false},
		{"ACPower", "true", false},
		{"ACPower", "false", true},
		{"ACPower", "perhaps", false},
		{"FirstBoot", "yes", false},
		{"FirstBoot", "no", true},
		{"NeedsUpdate", "/usr", false},
		{"OSRelease", "ID=debian", true},
		{"OSRelease", "ID=debian VERSION_ID>=11", true},
		{"OSRelease", "VERSION_ID<12", false},
		{"OSRelease", "ID!=debian", false},
		{"Memory", "4G", true},
		{"Memory", ">=16G", false},
		{"Memory", "<16G", true},
		{"Memory", "much", false},
		{"CPUs", ">0", true},
		{"CPUs", ">100000", false},
		{"CPUFeature", "AVX", true},
		{"CPUFeature", "avx512f", false},
		{"ControlGroupController", "v2", true},
		{"ControlGroupController", "v1", false},
		{"ControlGroupController", "cpu memory", true},
		{"ControlGroupController", "cpu io", false},
		{"MemoryPressure", "2%", true},
		{"MemoryPressure", "4%/1min", false},
		{"MemoryPressure", "user.slice:1%", true}, // not told
		{"CPUPressure", "1%", true},               // not told
		{"Firmware", "uefi", false},
		{"Credential", "nothing", false},
		{"Environment", "LEGION_TEST_NOTHING", false},
		{"Group", "nobody-has-this", false},
		{"Group", "4000000", false},
		{"Unheard", "of", true},
	} {
		if got := m.holds(service.Condition{Kind: c.kind, Value: c.value}); got != c.want {
			t.Errorf("Condition%s=%s is %v", c.kind, c.value, got)
		}
	}
	if runtime.GOARCH == "amd64" && !m.holds(service.Condition{Kind: "Architecture", Value: "x86-64"}) {
		t.Error("ConditionArchitecture=x86-64 is false on it")
	}
}

// TestNegated: what means nothing holds neither way.
func TestNegated(t *testing.T) {
	m := elsewhere(t, physical)
	for value, want := range map[string]bool{"CAP_CHOWN": false, "CAP_SYS_RAWIO": true, "CAP_NONSENSE": false} {
		if got := m.holds(service.Condition{Kind: "Capability", Value: value, Negate: true}); got != want {
			t.Errorf("ConditionCapability=!%s is %v", value, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("LEGION_TEST_CONDITION", "one")
	for value, want := range map[string]bool{"LEGION_TEST_CONDITION": true, "LEGION_TEST_CONDITION=one": true, "LEGION_TEST_CONDITION=two": false} {
		if got := Holds(service.Condition{Kind: "Environment", Value: value}); got != want {
			t.Errorf("ConditionEnvironment=%s is %v", value, got)
		}
	}
}

func TestVirtualization(t *testing.T) {
	for _, c := range []struct {
		files         map[string]string
		container, vm string
	}{
		{map[string]string{"/proc/1/environ": "PATH=/bin\x00container=lxc\x00", "/sys/class/dmi/id/sys_vendor": "QEMU\n"}, "lxc", "qemu"},
		{map[string]string{"/run/systemd/container": "podman\n"}, "podman", ""},
		{map[string]string{"/.dockerenv": ""}, "docker", ""},
		{map[string]string{"/sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}, "", "amazon"},
		{map[string]string{
			"/sys/class/dmi/id/sys_vendor": "QEMU\n", "/sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc\n",
		}, "", "kvm"},
		{map[string]string{"/proc/cpuinfo": "flags\t\t: fpu hypervisor avx\n"}, "", "vm-other"},
		{map[string]string{"/proc/cpuinfo": "flags\t\t: fpu avx\n"}, "", ""},
	} {
		m := elsewhere(t, c.files)
		if container, vm := m.container(), m.vm(); container != c.container || vm != c.vm {
			t.Errorf("%v: container %q, vm %q", c.files, container, vm)
		}
		// Of a container on a virtual machine the container counts.
		if got := m.holds(service.Condition{Kind: "Virtualization", Value: "vm"}); got != (c.container == "" && c.vm != "") {
			t.Errorf("%v: ConditionVirtualization=vm is %v", c.files, got)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"1", "1", 0},
		{"1.10", "1.9", 1},
		{"1.0", "1", 1},
		{"6.1.0-18-amd64", "6.1.0", 1},
		{"6.1~rc1", "6.1", -1},
		{"6.1~rc1", "6.1~rc2", -1},
		{"007", "7", 0},
		{"1.a", "1.1", -1},
		{"", "", 0},
		{"", "0", -1},
	} {
		if got := compareVersions(c.a, c.b); got != c.want {
			t.Errorf("%q against %q is %d, want %d", c.a, c.b, got, c.want)
		}
		if got := compareVersions(c.b, c.a); got != -c.want {
			t.Errorf("%q against %q is %d, want %d", c.b, c.a, got, -c.want)
		}
	}
}
