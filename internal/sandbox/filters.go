package sandbox

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// programs are the filters of a sandbox, one for each directive, as
// systemd.exec(5) describes them. The kernel takes the strictest answer.
func programs(s *service.Sandbox) []program {
	var out []program
	add := func(want bool, rules ...rule) {
		if want {
			out = append(out, program{rules: rules, otherwise: allow, other: allow})
		}
	}
	eperm := refuse(unix.EPERM)
	add(s.ProtectKernelModules, rule{calls: group("@module"), do: eperm})
	add(s.ProtectKernelLogs, rule{calls: []string{"syslog"}, do: eperm})
	add(s.ProtectClock, rule{calls: group("@clock"), do: eperm})
	add(s.ProtectHostname, rule{calls: []string{"sethostname", "setdomainname"}, do: eperm})
	add(s.PrivateDevices, rule{calls: group("@raw-io"), do: eperm})
	add(s.ProtectKernelTunables, rule{calls: []string{"_sysctl"}, do: eperm})
	// Only the policies without priority: other, batch, idle.
	add(s.RestrictRealtime, rule{calls: []string{"sched_setscheduler"}, do: eperm, test: noneOf, arg: 1, value: []uint32{0, 3, 5}},
		rule{calls: []string{"sched_setattr"}, do: eperm})
	add(s.LockPersonality, rule{calls: []string{"personality"}, do: eperm, test: noneOf, value: []uint32{personality(s.Personality), 0xffffffff}})
	add(s.MemoryDenyWriteExecute, writeExecute(eperm)...)
	add(s.RestrictSUIDSGID, setIDs(eperm)...)
	if s.RestrictNamespaces != nil {
		add(true, namespaces(*s.RestrictNamespaces, eperm)...)
	}
	if s.RestrictAddressFamilies != nil {
		r := rule{calls: []string{"socket"}, do: refuse(unix.EAFNOSUPPORT), test: noneOf, value: familyNumbers(*s.RestrictAddressFamilies)}
		if s.FamiliesDenied {
			r.test = oneOf
		}
		add(true, r)
	}
	if len(s.SystemCallArchitectures) > 0 {
		out = append(out, architectures(s.SystemCallArchitectures))
	}
	// The last ones: they may refuse seccomp(2), by which the others are installed.
	if s.SystemCalls != nil {
		out = append(out, ruled(s.SystemCalls))
	}
	if p, ok := callFilter(s); ok {
		out = append(out, p)
	}
	return out
}

// writeExecute refuses memory that is or becomes executable after it was
// writable.
func writeExecute(do uint32) []rule {
	const shmExec = 0o100000
	return []rule{
		{calls: []string{"mmap", "mmap2"}, do: do, test: allBits, arg: 2, value: []uint32{unix.PROT_EXEC | unix.PROT_WRITE}},
		{calls: []string{"mprotect", "pkey_mprotect"}, do: do, test: bits, arg: 2, value: []uint32{unix.PROT_EXEC}},
		{calls: []string{"shmat"}, do: do, test: bits, arg: 2, value: []uint32{shmExec}},
	}
}

// setIDs refuses files with the set-user-ID or set-group-ID bit.
func setIDs(do uint32) []rule {
	const mode = unix.S_ISUID | unix.S_ISGID
	with := func(arg int, calls ...string) rule {
		return rule{calls: calls, do: do, test: bits, arg: arg, value: []uint32{mode}}
	}
	return []rule{
		with(1, "chmod", "fchmod", "mkdir", "mknod", "creat"),
		with(2, "fchmodat", "fchmodat2", "mkdirat", "mknodat", "open"),
		with(3, "openat"),
		{calls: []string{"openat2"}, do: refuse(unix.ENOSYS)}, // its mode is out of a filter's sight
	}
}

var namespaceFlags = []struct {
	name string
	flag uint32
}{
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"ipc", unix.CLONE_NEWIPC},
	{"net", unix.CLONE_NEWNET},
	{"mnt", unix.CLONE_NEWNS},
	{"pid", unix.CLONE_NEWPID},
	{"user", unix.CLONE_NEWUSER},
	{"uts", unix.CLONE_NEWUTS},
}

func namespaces(allowed []string, do uint32) []rule {
	var denied uint32
	for _, n := range namespaceFlags {
		if !slices.Contains(allowed, n.name) {
			denied |= n.flag
		}
	}
	if denied == 0 {
		return nil
	}
	return []rule{
		// Programs fall back to clone, whose flags a filter can see.
		{calls: []string{"clone3"}, do: refuse(unix.ENOSYS)},
		{calls: []string{"clone", "unshare"}, do: do, test: bits, arg: 0, value: []uint32{denied}},
		{calls: []string{"setns"}, do: do, test: equals0, arg: 1},
		{calls: []string{"setns"}, do: do, test: bits, arg: 1, value: []uint32{denied}},
	}
}

// callFilter reads the lines of SystemCallFilter=: the first says whether they
// list what is allowed or, with ~, what is denied.
func callFilter(s *service.Sandbox) (program, bool) {
	if len(s.SystemCallFilter) == 0 {
		return program{}, false
	}
	denying := strings.HasPrefix(s.SystemCallFilter[0], "~")
	standard := kill
	if e := errorNumber(s.SystemCallErrorNumber); e != 0 {
		standard = refuse(e)
	}
	listed := map[string]uint32{}
	if !denying {
		for _, c := range group("@default") {
			listed[c] = allow
		}
	}
	for _, line := range s.SystemCallFilter {
		line, inverted := strings.CutPrefix(line, "~")
		for word := range strings.FieldsSeq(line) {
			name, number, _ := strings.Cut(word, ":")
			do := standard
			switch e := errorNumber(number); {
			case number == "kill":
				do = kill
			case e != 0:
				do = refuse(e)
			}
			for _, c := range group(name) {
				switch {
				case inverted != denying && number == "":
					delete(listed, c)
				case !denying && number == "":
					listed[c] = allow
				default:
					listed[c] = do
				}
			}
		}
	}
	byAction := map[uint32][]string{}
	for c, do := range listed {
		byAction[do] = append(byAction[do], c)
	}
	p := program{otherwise: allow, other: allow}
	if !denying {
		p.otherwise, p.other = standard, standard
	}
	for _, do := range slices.Sorted(func(yield func(uint32) bool) {
		for do := range byAction {
			if !yield(do) {
				return
			}
		}
	}) {
		p.rules = append(p.rules, rule{calls: byAction[do], do: do})
	}
	return p, true
}

// group gives the system calls of a set, or the one that has the name.
func group(name string) []string {
	if !strings.HasPrefix(name, "@") {
		return []string{name}
	}
	rest, ok := strings.CutPrefix(callGroups, name+": ")
	if !ok {
		if _, rest, ok = strings.Cut(callGroups, "\n"+name+": "); !ok {
			return nil
		}
	}
	var out []string
	for i, line := range strings.Split(rest, "\n") {
		if i > 0 && !strings.HasPrefix(line, "\t") {
			break
		}
		for f := range strings.FieldsSeq(line) {
			out = append(out, group(f)...)
		}
	}
	return out
}

// errorNumber reads EPERM or 1; 0 is none.
func errorNumber(s string) unix.Errno {
	if s == "" {
		return 0
	}
	for e := unix.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == s || decimal(int(e)) == s {
			return e
		}
	}
	return 0
}

// architectures allows the system calls of some architectures only.
func architectures(names []string) program {
	p := program{otherwise: allow, other: kill, native: true}
	for _, n := range names {
		secondary := n == "x86" && len(tables) > 0 && tables[0].arch == archAMD64 || n == "arm" && len(tables) > 0 && tables[0].arch == archARM64
		if secondary {
			p.native = false
		}
	}
	return p
}

// personality is the number that personality(2) takes for a name.
func personality(name string) uint32 {
	if name == "x86" || name == "arm" {
		return 0x0008 // PER_LINUX32
	}
	return 0
}

// familyNumbers are the numbers of the address families (linux/socket.h).
func familyNumbers(names []string) []uint32 {
	out := []uint32{}
	for _, n := range names {
		for i, known := range families {
			if "AF_"+known == n && known != "-" {
				out = append(out, uint32(i))
			}
		}
		if n == "AF_LOCAL" || n == "AF_FILE" {
			out = append(out, unix.AF_UNIX)
		}
		if n == "AF_ROUTE" {
			out = append(out, unix.AF_NETLINK)
		}
	}
	return out
}

// families in the order of their numbers.
var families = strings.Fields(`UNSPEC UNIX INET AX25 IPX APPLETALK NETROM BRIDGE ATMPVC X25 INET6 ROSE DECnet
	NETBEUI SECURITY KEY NETLINK PACKET ASH ECONET ATMSVC RDS SNA IRDA PPPOX WANPIPE LLC IB MPLS CAN TIPC
	BLUETOOTH IUCV RXRPC ISDN PHONET IEEE802154 CAIF ALG NFC VSOCK KCM QIPCRTR SMC XDP MCTP`)
