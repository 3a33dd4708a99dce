package sandbox

import (
	"slices"

	"golang.org/x/net/bpf"

	"legion.dev/legion/internal/service"
)

// ruled is the filter of a service.CallFilter.
func ruled(f *service.CallFilter) program {
	p := program{otherwise: f.Default, other: kill, native: !f.Secondary}
	for _, r := range f.Rules {
		one := rule{calls: r.Calls, do: r.Do}
		if len(r.Where) > 0 {
			one.test, one.where = holds, r.Where
		}
		p.rules = append(p.rules, one)
	}
	slices.SortStableFunc(p.rules, func(a, b rule) int { return int(a.test) - int(b.test) })
	return p
}

// conditions go on behind where all of list hold, and else skip as many
// instructions more.
func conditions(list []service.CallCondition, skip int) []bpf.Instruction {
	var out []bpf.Instruction
	for _, c := range slices.Backward(list) {
		out = append(condition(c, uint8(skip+len(out))), out...)
	}
	return out
}

// condition compares 64 bits by halves, the higher first. It goes on behind
// where it holds, and else skips as many instructions more.
func condition(c service.CallCondition, skip uint8) []bpf.Instruction {
	high, low := uint32(c.Value>>32), uint32(c.Value)
	at := uint32(offArgs + 8*c.Arg) // little-endian: the lower half
	loadHigh, loadLow := bpf.LoadAbsolute{Off: at + 4, Size: 4}, bpf.LoadAbsolute{Off: at, Size: 4}
	sameHigh := bpf.JumpIf{Cond: bpf.JumpEqual, Val: high, SkipFalse: 2 + skip}
	last := bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: low}
	switch c.Is {
	case "==":
		return []bpf.Instruction{loadHigh, sameHigh, loadLow, bpf.JumpIf{Cond: bpf.JumpEqual, Val: low, SkipFalse: skip}}
	case "!=":
		return []bpf.Instruction{
			loadHigh,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: high, SkipFalse: 2},
			loadLow,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: low, SkipTrue: skip},
		}
	case "&":
		return []bpf.Instruction{
			loadHigh,
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(c.Mask >> 32)},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: high, SkipFalse: 3 + skip},
			loadLow,
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: uint32(c.Mask)},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: low, SkipFalse: skip},
		}
	case ">", ">=":
		if last.SkipFalse = skip; c.Is == ">=" {
			last.Cond = bpf.JumpGreaterOrEqual
		}
		return []bpf.Instruction{loadHigh, bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: high, SkipTrue: 3}, sameHigh, loadLow, last}
	default: // "<", "<="
		if last.SkipTrue = skip; c.Is == "<" {
			last.Cond = bpf.JumpGreaterOrEqual
		}
		return []bpf.Instruction{
			loadHigh,
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: high, SkipTrue: 3 + skip},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: high, SkipFalse: 2},
			loadLow, last,
		}
	}
}
