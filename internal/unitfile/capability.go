package unitfile

import (
	"slices"
	"strings"
)

// Capabilities are Linux' capabilities by number (linux/capability.h).
var Capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
	"CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capabilities merges a list into a set: names add, a list behind ~ takes away,
// the empty value empties. A ~ list on a set that was never assigned begins
// with all where unset says so (CapabilityBoundingSet=), else with none.
func capabilities(c *compiler, e Entry, set []string, unsetIsAll bool) []string {
	value, inverted := strings.CutPrefix(e.Value, "~")
	if value == "" {
		if inverted {
			return slices.Clone(Capabilities)
		}
		return nil
	}
	ws := Words{Rest: value}
	var listed []string
	for {
		w, ok, err := ws.NextUnit("", Unquote)
		if err != nil {
			c.warn(e, "ignored from %q on: %v", ws.Rest, err)
		}
		if err != nil || !ok {
			break
		}
		if name := strings.ToUpper(w); slices.Contains(Capabilities, name) {
			listed = append(listed, name)
		} else {
			c.warn(e, "ignored: %q is no capability", w)
		}
	}
	if inverted && unsetIsAll {
		set = Capabilities
	}
	var out []string
	for _, name := range Capabilities {
		in := slices.Contains(set, name)
		if slices.Contains(listed, name) {
			in = !inverted
		}
		if in {
			out = append(out, name)
		}
	}
	return out
}

func boundingSet(c *compiler, e Entry) error {
	x := &c.svc.Exec
	var old []string
	if x.CapabilityBoundingSet != nil {
		old = *x.CapabilityBoundingSet
	}
	set := capabilities(c, e, old, x.CapabilityBoundingSet == nil)
	if set == nil {
		set = []string{}
	}
	x.CapabilityBoundingSet = &set
	return nil
}

func ambient(c *compiler, e Entry) error {
	x := &c.svc.Exec
	x.AmbientCapabilities = capabilities(c, e, x.AmbientCapabilities, false)
	return nil
}
