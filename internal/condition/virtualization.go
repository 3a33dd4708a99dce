package condition

import (
	"os"
	"slices"
	"strings"

	"legion.dev/legion/internal/unitfile"
)

// virtualization: yes and no, vm, container, or a name (systemd-detect-virt(1)).
// What runs in a container on a virtual machine is in a container.
func (m machine) virtualization(value string) (bool, error) {
	if value == "private-users" {
		return m.privateUsers(), nil
	}
	container := m.container()
	vm := ""
	if container == "" {
		vm = m.vm()
	}
	switch value {
	case "container":
		return container != "", nil
	case "vm":
		return vm != "", nil
	}
	if want, err := unitfile.ParseBool(value); err == nil {
		return (container+vm != "") == want, nil
	}
	return value == container+vm, nil
}

// initialPIDs is the inode of the first PID namespace (linux/proc_ns.h).
const initialPIDs = "pid:[4026531836]"

// container names the container manager; empty outside of a container.
func (m machine) container() string {
	if name := m.text("/run/systemd/container"); name != "" {
		return name
	}
	for env := range strings.SplitSeq(m.text("/proc/1/environ"), "\x00") {
		if name, ok := strings.CutPrefix(env, "container="); ok && name != "" {
			return name
		}
	}
	switch {
	case m.exists("/run/.containerenv"):
		return "podman"
	case m.exists("/.dockerenv"):
		return "docker"
	}
	if ns, err := os.Readlink(m.path("/proc/self/ns/pid")); err == nil && ns != initialPIDs {
		return "container-other"
	}
	return ""
}

// vendors are what virtual machines say of themselves in their firmware.
var vendors = []struct{ says, name string }{
	{"KVM", "kvm"},
	{"Amazon EC2", "amazon"},
	{"QEMU", "qemu"},
	{"VMware", "vmware"},
	{"VMW", "vmware"},
	{"innotek GmbH", "oracle"},
	{"VirtualBox", "oracle"},
	{"Xen", "xen"},
	{"Bochs", "bochs"},
	{"Parallels", "parallels"},
	{"BHYVE", "bhyve"},
	{"Hyper-V", "microsoft"},
	{"Google Compute Engine", "google"},
	{"Apple Virtualization", "apple"},
}

// vm names the hypervisor; empty on the machine itself.
func (m machine) vm() string {
	name := ""
	for _, field := range []string{"product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version"} {
		said := m.text("/sys/class/dmi/id/" + field)
		for _, v := range vendors {
			if name == "" && strings.HasPrefix(said, v.says) {
				name = v.name
			}
		}
	}
	if name == "" {
		name = m.text("/sys/hypervisor/type")
	}
	_, flags, _ := strings.Cut(m.field("/proc/cpuinfo", "flags"), ":")
	switch {
	case name != "" && name != "qemu":
	case strings.Contains(m.text("/sys/devices/system/clocksource/clocksource0/available_clocksource"), "kvm-clock"):
		name = "kvm"
	case name == "" && slices.Contains(strings.Fields(flags), "hypervisor"):
		name = "vm-other"
	}
	return name
}

// privateUsers says whether users are mapped in another way than to themselves.
func (m machine) privateUsers() bool {
	f := strings.Fields(m.text("/proc/self/uid_map"))
	return len(f) >= 3 && strings.Join(f, " ") != "0 0 4294967295"
}
