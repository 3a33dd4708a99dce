package sandbox

import (
	"encoding/binary"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// answer runs the programs over one system call; the strictest answer counts,
// as in seccomp(2).
func answer(t *testing.T, list []program, arch, number uint32, args ...uint32) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, number) // the order in which this machine loads
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offArgs+8*i:], a)
	}
	out := allow
	for i := range list {
		raw, err := list[i].assemble()
		if err != nil {
			t.Fatal(err)
		}
		code, ok := bpf.Disassemble(raw)
		if !ok {
			t.Fatal("an instruction that is none")
		}
		vm, err := bpf.NewVM(code)
		if err != nil {
			t.Fatal(err)
		}
		n, err := vm.Run(data)
		if err != nil {
			t.Fatal(err)
		}
		if got := uint32(n); int32(got&unix.SECCOMP_RET_ACTION_FULL) < int32(out&unix.SECCOMP_RET_ACTION_FULL) {
			out = got
		}
	}
	return out
}

func TestPrograms(t *testing.T) {
	if len(tables) == 0 {
		t.Skip("the system calls of this architecture are not known")
	}
	native := tables[0]
	n := native.numbers()
	eperm := refuse(unix.EPERM)
	for what, test := range map[string]struct {
		box  service.Sandbox
		arch uint32
		call uint32
		args []uint32
		want uint32
	}{
		"allowed":                   {service.Sandbox{SystemCallFilter: []string{"@system-service"}}, native.arch, n["openat"], nil, allow},
		"not allowed":               {service.Sandbox{SystemCallFilter: []string{"@system-service"}}, native.arch, n["mount"], nil, kill},
		"taken out":                 {service.Sandbox{SystemCallFilter: []string{"@system-service", "~openat"}, SystemCallErrorNumber: "1"}, native.arch, n["openat"], nil, eperm},
		"put in":                    {service.Sandbox{SystemCallFilter: []string{"@system-service", "mount"}}, native.arch, n["mount"], nil, allow},
		"always allowed":            {service.Sandbox{SystemCallFilter: []string{"read"}}, native.arch, n["execve"], nil, allow},
		"denied":                    {service.Sandbox{SystemCallFilter: []string{"~@mount"}}, native.arch, n["mount"], nil, kill},
		"denied with a number":      {service.Sandbox{SystemCallFilter: []string{"~@mount:EPERM"}}, native.arch, n["mount"], nil, eperm},
		"allowed again":             {service.Sandbox{SystemCallFilter: []string{"~@mount", "mount"}}, native.arch, n["mount"], nil, allow},
		"of another architecture":   {service.Sandbox{SystemCallFilter: []string{"@system-service"}}, 1, n["openat"], nil, kill},
		"native only":               {service.Sandbox{SystemCallArchitectures: []string{"native"}}, 1, n["openat"], nil, kill},
		"native":                    {service.Sandbox{SystemCallArchitectures: []string{"native"}}, native.arch, n["openat"], nil, allow},
		"socket":                    {service.Sandbox{RestrictAddressFamilies: &[]string{"AF_UNIX"}}, native.arch, n["socket"], []uint32{unix.AF_UNIX}, allow},
		"no socket":                 {service.Sandbox{RestrictAddressFamilies: &[]string{"AF_UNIX"}}, native.arch, n["socket"], []uint32{unix.AF_VSOCK}, refuse(unix.EAFNOSUPPORT)},
		"no family at all":          {service.Sandbox{RestrictAddressFamilies: &[]string{}}, native.arch, n["socket"], []uint32{unix.AF_UNIX}, refuse(unix.EAFNOSUPPORT)},
		"all but none":              {service.Sandbox{RestrictAddressFamilies: &[]string{}, FamiliesDenied: true}, native.arch, n["socket"], []uint32{unix.AF_UNIX}, allow},
		"threads":                   {service.Sandbox{RestrictNamespaces: &[]string{}}, native.arch, n["clone"], []uint32{unix.CLONE_THREAD | unix.CLONE_VM}, allow},
		"clone3":                    {service.Sandbox{RestrictNamespaces: &[]string{}}, native.arch, n["clone3"], nil, refuse(unix.ENOSYS)},
		"a namespace":               {service.Sandbox{RestrictNamespaces: &[]string{"net"}}, native.arch, n["unshare"], []uint32{unix.CLONE_NEWNET | unix.CLONE_NEWUSER}, eperm},
		"an allowed namespace":      {service.Sandbox{RestrictNamespaces: &[]string{"net"}}, native.arch, n["setns"], []uint32{3, unix.CLONE_NEWNET}, allow},
		"any namespace":             {service.Sandbox{RestrictNamespaces: &[]string{"net"}}, native.arch, n["setns"], []uint32{3, 0}, eperm},
		"executable":                {service.Sandbox{MemoryDenyWriteExecute: true}, native.arch, n["mmap"], []uint32{0, 0, unix.PROT_EXEC | unix.PROT_READ}, allow},
		"writable and executable":   {service.Sandbox{MemoryDenyWriteExecute: true}, native.arch, n["mmap"], []uint32{0, 0, unix.PROT_EXEC | unix.PROT_WRITE | unix.PROT_READ}, eperm},
		"set-user-ID":               {service.Sandbox{RestrictSUIDSGID: true}, native.arch, n["fchmodat"], []uint32{0, 0, 0o4755}, eperm},
		"the strictest answer":      {service.Sandbox{ProtectKernelModules: true, SystemCallFilter: []string{"~@module"}}, native.arch, n["init_module"], nil, kill},
		"nothing of the like":       {service.Sandbox{PrivateTmp: true}, native.arch, n["mount"], nil, allow},
		"the last of a long filter": {service.Sandbox{SystemCallFilter: []string{"@system-service @privileged @debug"}}, native.arch, n["close_range"], nil, allow},
	} {
		if got := answer(t, programs(&test.box), test.arch, test.call, test.args...); got != test.want {
			t.Errorf("%s: %#x, want %#x", what, got, test.want)
		}
	}
	if native.arch == archAMD64 {
		if got := answer(t, programs(&service.Sandbox{SystemCallFilter: []string{"@system-service"}}), archAMD64, x32|n["read"]); got != kill {
			t.Errorf("x32: %#x", got)
		}
		other := tables[1].numbers()
		if got := answer(t, programs(&service.Sandbox{ProtectClock: true}), arch386, other["settimeofday"]); got != eperm {
			t.Errorf("386: %#x", got)
		}
	}
}

func TestCallGroups(t *testing.T) {
	if n := len(group("@system-service")); n < 250 {
		t.Errorf("@system-service has %d", n)
	}
	if n := len(group("@timer")); n < 10 || n > 20 {
		t.Errorf("the last group has %d", n)
	}
	if g := group("@nothing"); g != nil {
		t.Errorf("%q", g)
	}
	if n := familyNumbers([]string{"AF_UNIX", "AF_INET6", "AF_VSOCK", "AF_XDP"}); n[0] != unix.AF_UNIX || n[1] != unix.AF_INET6 || n[2] != unix.AF_VSOCK || n[3] != unix.AF_XDP {
		t.Errorf("%v", n)
	}
}
