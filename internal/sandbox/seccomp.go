package sandbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// The architectures as seccomp(2) tells them (linux/audit.h).
const (
	archAMD64 uint32 = 0xc000003e
	arch386   uint32 = 0x40000003
	archARM64 uint32 = 0xc00000b7
	archARM   uint32 = 0x40000028
)

// x32 is the bit in the number of a system call of the x32 ABI, which bears
// the same architecture as amd64 does. It is refused as a whole.
const x32 = 0x40000000

// table is an architecture and its system calls, "name:number" each.
type table struct {
	arch  uint32
	calls string
}

func (t table) numbers() map[string]uint32 {
	out := make(map[string]uint32, 512)
	for f := range strings.FieldsSeq(t.calls) {
		name, number, _ := strings.Cut(f, ":")
		n, _ := strconv.ParseUint(number, 10, 32)
		out[name] = uint32(n)
	}
	return out
}

// What a filter does with a call.
const (
	allow = uint32(unix.SECCOMP_RET_ALLOW)
	kill  = uint32(unix.SECCOMP_RET_KILL_PROCESS)
)

func refuse(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// rule is what is done with some calls, where the test holds: of the lower 32
// bits of an argument, which is all the kernel looks at in these.
type rule struct {
	calls []string
	do    uint32
	test  test
	arg   int
	value []uint32
	where []service.CallCondition
}

type test int

const (
	always   test = iota
	bits          // any bit of value[0] is set
	allBits       // all bits of value[0] are set
	oneOf         // it is one of value
	noneOf        // it is none of value
	equals0       // it is 0
	differs0      // it is not 0
	holds         // all of where hold, of whole arguments
)

// program is one filter: the first rule that applies to a call decides, in lack
// of one otherwise does. Other architectures than those of the table get other.
type program struct {
	rules            []rule
	otherwise, other uint32
	// native leaves all architectures but the first to other.
	native bool
}

const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16 // of 64 bits each
)

func (p *program) assemble() ([]bpf.RawInstruction, error) {
	out := []bpf.Instruction{bpf.LoadAbsolute{Off: offArch, Size: 4}}
	for i, t := range tables {
		if p.native && i > 0 {
			break
		}
		block := p.block(t)
		out = append(out, bpf.JumpIf{Cond: bpf.JumpEqual, Val: t.arch, SkipTrue: 1}, bpf.Jump{Skip: uint32(len(block))})
		out = append(out, block...)
	}
	out = append(out, bpf.RetConstant{Val: p.other})
	return bpf.Assemble(out)
}

func (p *program) block(t table) []bpf.Instruction {
	numbers := t.numbers()
	number := bpf.LoadAbsolute{Off: offNumber, Size: 4}
	out := []bpf.Instruction{number}
	if t.arch == archAMD64 {
		do := p.otherwise
		if do == allow {
			do = refuse(unix.ENOSYS)
		}
		out = append(out, bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: x32, SkipFalse: 1}, bpf.RetConstant{Val: do})
	}
	for _, r := range p.rules {
		var list []uint32
		for _, name := range r.calls {
			if n, ok := numbers[name]; ok {
				list = append(list, n)
			}
		}
		slices.Sort(list)
		list = slices.Compact(list)
		for len(list) > 0 {
			n := 1
			for n < len(list) && list[n] == list[0]+uint32(n) {
				n++
			}
			out = append(out, r.instructions(list[0], list[n-1])...)
			list = list[n:]
		}
	}
	return append(out, bpf.RetConstant{Val: p.otherwise})
}

// instructions apply the rule to the calls from first to last. The number is
// loaded before and after.
func (r *rule) instructions(first, last uint32) []bpf.Instruction {
	ret := bpf.RetConstant{Val: r.do}
	var body []bpf.Instruction
	arg := bpf.LoadAbsolute{Off: uint32(offArgs + 8*r.arg), Size: 4} // little-endian: the lower half
	again := bpf.LoadAbsolute{Off: offNumber, Size: 4}
	switch r.test {
	case always:
		body = []bpf.Instruction{ret}
	case bits:
		body = []bpf.Instruction{arg, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: r.value[0], SkipFalse: 1}, ret, again}
	case allBits:
		body = []bpf.Instruction{
			arg,
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: r.value[0]},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: r.value[0], SkipFalse: 1},
			ret, again,
		}
	case equals0:
		body = []bpf.Instruction{arg, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipFalse: 1}, ret, again}
	case differs0:
		body = []bpf.Instruction{arg, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, ret, again}
	case holds:
		body = conditions(r.where, 1)
		body = append(body, ret, again)
	case oneOf, noneOf:
		body = []bpf.Instruction{arg}
		for i, v := range r.value {
			left := uint8(len(r.value) - i - 1)
			if r.test == oneOf {
				if i == len(r.value)-1 {
					body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipFalse: 1})
				} else {
					body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: left})
				}
			} else {
				body = append(body, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: left + 1})
			}
		}
		body = append(body, ret, again)
		if r.test == oneOf && len(r.value) == 0 {
			return nil
		}
	}
	skip := uint8(len(body))
	if first == last {
		return append([]bpf.Instruction{bpf.JumpIf{Cond: bpf.JumpEqual, Val: first, SkipFalse: skip}}, body...)
	}
	return append([]bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: first, SkipFalse: skip + 1},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: last, SkipTrue: skip},
	}, body...)
}

// filters turns the sandbox into programs in the kernel's form.
func filters(list []program) ([]unix.SockFprog, error) {
	out := make([]unix.SockFprog, 0, len(list))
	for i := range list {
		raw, err := list[i].assemble()
		if err != nil {
			return nil, err
		}
		if len(raw) > unix.BPF_MAXINSNS {
			return nil, fmt.Errorf("the filter has %d instructions, the kernel takes %d", len(raw), unix.BPF_MAXINSNS)
		}
		code := make([]unix.SockFilter, len(raw))
		for k, r := range raw {
			code[k] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		out = append(out, unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	}
	return out, nil
}

// execFiltered installs the filters for this thread and executes the program,
// with nothing but system calls in between: the filters may allow no others
// than execve, so the Go runtime must have no turn. Preemption by signal is off
// in this process (see the runner).
func execFiltered(list []unix.SockFprog, path *byte, argv, env **byte) (installed bool, e unix.Errno) {
	for i := range list {
		_, _, e = unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&list[i])))
		if e != 0 {
			return false, e
		}
	}
	_, _, e = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(argv)), uintptr(unsafe.Pointer(env)))
	return true, e
}
