package daemonset

import (
	"strings"
	"time"
)

// Gate says to which nodes an update may come at one moment.
type Gate struct {
	// Closed: it comes to no node. Why says why.
	Closed bool
	Why    string
	// Wave is the wave that is being updated, or that waits for the ones before
	// it to bake until Until. InWaves is false where there is only one wave, or
	// nothing is left to do.
	InWaves bool
	Wave    Wave
	Until   time.Time

	// last is the last wave to which the update may come, if limited is set.
	limited bool
	last    Wave
	tail    *tail
}

// lets says whether the update may come to a node. If it may not, it may not
// come to any node later in order.
func (g *Gate) lets(k turn) bool {
	if g.Closed {
		return false
	}
	if g.limited && compareWaves(k.wave, g.last) > 0 {
		return false
	}
	return g.tail == nil || !g.tail.holds(k)
}

// Gate works out to which nodes an update may come now.
func (f *Fleet) Gate(now time.Time) Gate {
	p := f.policy
	switch {
	case !p.gated:
		return Gate{}
	case len(p.wrong) > 0:
		var s []string
		for _, w := range p.wrong {
			s = append(s, w.String())
		}
		return Gate{Closed: true, Why: strings.Join(s, "; ")}
	case p.options.Paused:
		return Gate{Closed: true, Why: "paused"}
	}
	var g Gate
	if p.partitioned() {
		g.tail = f.tail
	}
	g.Wave, g.InWaves = f.open.Min()
	g.last, g.limited = g.Wave, g.InWaves
	if p.options.Bake <= 0 {
		return g
	}
	// No wave may begin while an earlier one bakes, also not by a node that is
	// left out for now. Only waves that bake are looked at, however many there are.
	f.ripening.Descend(func(r ripe) bool {
		if !r.at.Add(p.options.Bake).After(now) {
			return false
		}
		if !g.limited || compareWaves(r.wave, g.last) < 0 {
			g.last, g.limited = r.wave, true
		}
		return true
	})
	if g.InWaves && g.last != g.Wave {
		g.Until = f.baked(g.Wave)
	}
	return g
}

// baked returns when all waves before this one have baked.
func (f *Fleet) baked(wave Wave) time.Time {
	var last time.Time
	f.ripening.Descend(func(r ripe) bool {
		if compareWaves(r.wave, wave) < 0 {
			last = r.at.Add(f.policy.options.Bake)
		}
		return last.IsZero()
	})
	return last
}

// Lets says whether an update may come to a node now.
func (f *Fleet) Lets(node string, now time.Time) bool {
	g := f.Gate(now)
	s := f.nodes[node]
	return s == nil || g.lets(s.turn)
}

// Make returns the revision of which a pod may be made on a node now: the
// current one, but where the update may not come yet the one that the node ran
// last, or else the one that most other pods run that are not updated.
func (f *Fleet) Make(node string, now time.Time) string {
	s := f.nodes[node]
	// The cluster's own controller, if pods are its business, knows the current one only.
	if !f.policy.gated || f.policy.updatesOnly || s == nil || f.Lets(node, now) {
		return f.policy.Hash
	}
	if s.last != "" {
		return s.last
	}
	best := f.policy.Hash
	most := 0
	for hash, n := range f.hashes {
		if hash != f.policy.Hash && hash != "" && (n > most || n == most && hash < best) {
			best, most = hash, n
		}
	}
	return best
}
