package sim

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// Span is a range of durations, both ends included. Max below Min means Min.
type Span struct{ Min, Max time.Duration }

func (s Span) at(r *rand.Rand) time.Duration {
	if s.Max <= s.Min {
		return s.Min
	}
	return s.Min + time.Duration(r.Int64N(int64(s.Max-s.Min)+1))
}

// fate is what becomes of one pod.
type fate struct {
	start, stop time.Duration
	fails       bool
}

// fateOf draws the fate of the nth pod of a node. The same seed gives the same
// fates, in whatever order the pods come.
func fateOf(cfg *Config, node string, nth int) fate {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	r := rand.New(rand.NewPCG(cfg.Seed, h.Sum64()+uint64(nth)*0x9e3779b97f4a7c15))
	return fate{start: cfg.Start.at(r), stop: cfg.Stop.at(r), fails: r.Float64() < cfg.Failures}
}
