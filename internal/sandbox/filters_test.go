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
	var halves []uint32
	for _, a := range args {
		halves = append(halves, a, 0)
	}
	return answerWide(t, list, arch, number, halves...)
}

// answerWide takes arguments in halves, the lower first.
func answerWide(t *testing.T, list []program, arch, number uint32, halves ...uint32) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data, number) // the order in which this machine loads
	binary.BigEndian.PutUint32(data[offArch:], arch)
	for i, half := range halves {
		binary.BigEndian.PutUint32(data[offArgs+4*i:], half)
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

// TestCallFilter: a rule applies where all its conditions hold, of all 64 bits;
// one without goes before them.
func TestCallFilter(t *testing.T) {
	if len(tables) == 0 {
		t.Skip("the system calls of this architecture are not known")
	}
	native := tables[0]
	n := native.numbers()
	eperm := refuse(unix.EPERM)
	const big = 5<<32 | 7
	values := []uint64{0, 6, 7, 8, 4<<32 | 9, 5 << 32, big - 1, big, big + 1, 6 << 32, 6<<32 | 7}
	holds := map[string]func(a, b uint64) bool{
		"==": func(a, b uint64) bool { return a == b }, "!=": func(a, b uint64) bool { return a != b },
		"<": func(a, b uint64) bool { return a < b }, "<=": func(a, b uint64) bool { return a <= b },
		">": func(a, b uint64) bool { return a > b }, ">=": func(a, b uint64) bool { return a >= b },
		"&": func(a, b uint64) bool { return a&(1<<32|3) == b },
	}
	for is, holds := range holds {
		for _, value := range append(values, 1<<32|3, 3) {
			first := service.CallCondition{Arg: 0, Is: is, Mask: 1<<32 | 3, Value: value}
			second := service.CallCondition{Arg: 2, Is: "!=", Value: 1}
			box := service.Sandbox{SystemCalls: &service.CallFilter{Default: allow, Rules: []service.CallRule{
				{Calls: []string{"clone", "fork"}, Do: eperm, Where: []service.CallCondition{first, second}},
				{Calls: []string{"clone"}, Do: kill, Where: []service.CallCondition{second}},
				{Calls: []string{"fork"}, Do: refuse(unix.ENOSYS)},
			}}}
			for _, arg := range values {
				for other, also := range []bool{true, false} {
					want := allow
					switch {
					case also && holds(arg, value):
						want = eperm
					case also:
						want = kill
					}
					args := []uint32{uint32(arg), uint32(arg >> 32), 0, 0, uint32(other), 0}
					if got := answerWide(t, programs(&box), native.arch, n["clone"], args...); got != want {
						t.Fatalf("%d %s %d, %d != 1: %#x, want %#x", arg, is, value, other, got, want)
					}
				}
				if number, ok := n["fork"]; ok {
					if got := answerWide(t, programs(&box), native.arch, number, uint32(arg), uint32(arg>>32)); got != refuse(unix.ENOSYS) {
						t.Fatalf("without a condition: %#x", got)
					}
				}
			}
		}
	}
	for secondary, want := range map[bool]uint32{true: allow, false: kill} {
		if len(tables) > 1 {
			box := service.Sandbox{SystemCalls: &service.CallFilter{Default: allow, Secondary: secondary}}
			if got := answer(t, programs(&box), tables[1].arch, 1); got != want {
				t.Errorf("the second architecture, allowed %v: %#x", secondary, got)
			}
		}
	}
}
