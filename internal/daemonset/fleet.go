package daemonset

import (
	"time"

	"github.com/google/btree"
	appsv1 "k8s.io/api/apps/v1"
)

// Tally counts nodes. All fields are sums of the nodes' shares.
type Tally struct {
	// The counts of the status.
	Desired, Current, Misscheduled, Ready, Updated, Available int
	// Unavailable nodes use up maxUnavailable.
	Unavailable int
	// Surging nodes use up maxSurge.
	Surging int
	// Serving nodes have an available pod, eligible or not. Counted only for
	// DaemonSets that surge.
	Serving int
	// Skipped nodes were NotReady before the update came to them.
	Skipped int
	// Open nodes are eligible, and not both updated and available. NotReady
	// ones are not counted where they are skipped.
	Open int
}

func (t *Tally) add(o Tally, sign int) {
	t.Desired += sign * o.Desired
	t.Current += sign * o.Current
	t.Misscheduled += sign * o.Misscheduled
	t.Ready += sign * o.Ready
	t.Updated += sign * o.Updated
	t.Available += sign * o.Available
	t.Unavailable += sign * o.Unavailable
	t.Surging += sign * o.Surging
	t.Serving += sign * o.Serving
	t.Skipped += sign * o.Skipped
	t.Open += sign * o.Open
}

// Fleet holds the verdicts of all nodes of one DaemonSet and their running
// tallies. Setting one node costs the same however many there are.
type Fleet struct {
	policy *Policy
	nodes  map[string]*slot
	tally  Tally
	hashes map[string]int
	// lasts counts the nodes by the revision that they ran last.
	lasts map[string]int
	// free are candidates that use no budget.
	candidates, free, leaving *turns
	// troubles are the nodes without an available pod, by what is wrong.
	troubles map[string]*btree.BTreeG[string]
	// lacking counts the nodes that only lack a runtime, by what they say.
	lacking map[string]int
	// away are the nodes that are not eligible and use the budget.
	away *btree.BTreeG[string]

	// waves and open are kept where there is more than one wave: their
	// progress, and those where something is left to do. ripening are those with
	// nodes that are done, by when the last of these was; kept where waves bake.
	waves    map[Wave]*progress
	open     *btree.BTreeG[Wave]
	ripening *btree.BTreeG[ripe]
	// tail is kept where there is a partition, settled where there is a
	// deadline.
	tail    *tail
	settled moments
	// since is when the current revision became that, first that there is none
	// before it.
	since time.Time
	first bool
}

type slot struct {
	turn    turn
	verdict Verdict
	hashes  []string
	// last is the revision that was last seen on the node.
	last string
}

// NewFleet makes an empty fleet.
func NewFleet(p *Policy) *Fleet {
	return &Fleet{
		policy:     p,
		nodes:      map[string]*slot{},
		hashes:     map[string]int{},
		lasts:      map[string]int{},
		candidates: newTurns(),
		free:       newTurns(),
		leaving:    newTurns(),
		troubles:   map[string]*btree.BTreeG[string]{},
		lacking:    map[string]int{},
		away:       btree.NewOrderedG[string](16),
		waves:      map[Wave]*progress{},
		open:       newWaves(),
		ripening:   newRipening(),
		tail:       newTail(),
		settled:    newMoments(),
	}
}

func newWaves() *btree.BTreeG[Wave] {
	return btree.NewG(8, func(a, b Wave) bool { return compareWaves(a, b) < 0 })
}

// Begin says when the current revision became that: the deadline counts from
// then on.
func (f *Fleet) Begin(since time.Time) { f.since = since }

// First says whether there is no revision before the current one, to which an
// update could be rolled back.
func (f *Fleet) First(first bool) { f.first = first }

// Inherit takes over from an earlier plan of the same DaemonSet which revision
// each node ran last, for nodes that run none now.
func (f *Fleet) Inherit(before *Fleet) {
	if before == nil {
		return
	}
	for node, s := range before.nodes {
		if s.last != "" {
			f.nodes[node] = &slot{turn: turn{node: node}, last: s.last}
			f.lasts[s.last]++
		}
	}
}

// Set judges one node anew and returns its verdict. A node that is gone and
// has no pods left is forgotten.
func (f *Fleet) Set(n Node, now time.Time) Verdict {
	v := f.policy.Decide(n, now)
	s := f.nodes[n.Name]
	if s != nil {
		f.account(s, -1)
	}
	if !n.Exists && len(n.Pods) == 0 {
		delete(f.nodes, n.Name)
		return v
	}
	if s == nil {
		s = &slot{}
		f.nodes[n.Name] = s
	}
	s.turn = turn{n.Wave, n.Name}
	s.verdict = v
	s.hashes = s.hashes[:0]
	for i := range n.Pods {
		s.hashes = append(s.hashes, n.Pods[i].Hash)
		s.last = n.Pods[i].Hash
	}
	f.account(s, 1)
	return v
}

func (f *Fleet) account(s *slot, sign int) {
	v, in := &s.verdict, sign > 0
	f.tally.add(v.Share, sign)
	for _, h := range s.hashes {
		if f.hashes[h] += sign; f.hashes[h] == 0 {
			delete(f.hashes, h)
		}
	}
	if v.Lacks != "" {
		if f.lacking[v.Lacks] += sign; f.lacking[v.Lacks] == 0 {
			delete(f.lacking, v.Lacks)
		}
	}
	if s.last != "" {
		if f.lasts[s.last] += sign; f.lasts[s.last] == 0 {
			delete(f.lasts, s.last)
		}
	}
	keep(f.candidates, s.turn, in && v.Candidate != nil && !v.Free)
	keep(f.free, s.turn, in && v.Candidate != nil && v.Free)
	keep(f.leaving, s.turn, in && v.Leaving != nil)
	keep(f.away, s.turn.node, in && v.Share.Desired == 0 && v.Share.Unavailable+v.Share.Surging > 0)
	f.accountTrouble(s, in)
	f.accountWave(s, sign)
}

func keep[T any](t *btree.BTreeG[T], item T, in bool) {
	if in {
		t.ReplaceOrInsert(item)
	} else {
		t.Delete(item)
	}
}

func (f *Fleet) accountTrouble(s *slot, in bool) {
	what := s.verdict.Trouble
	if what == "" {
		return
	}
	t := f.troubles[what]
	if t == nil {
		t = btree.NewOrderedG[string](16)
		f.troubles[what] = t
	}
	keep(t, s.turn.node, in)
	if t.Len() == 0 {
		delete(f.troubles, what)
	}
}

// accountWave keeps what the options ask for: the progress of waves, the
// partition's boundary, and when nodes were done.
func (f *Fleet) accountWave(s *slot, sign int) {
	p, v, in := f.policy, &s.verdict, sign > 0
	desired := v.Share.Desired == 1
	at := time.Time{}
	if in {
		at = v.SettledAt
	}
	if p.options.Deadline > 0 {
		f.settled.set(s.turn.node, at)
	}
	if p.partitioned() {
		f.tail.set(s.turn, in && desired, v.Settled)
		f.tail.resize(p.partition(f.tally.Desired))
	}
	// A node that is not eligible any more and may keep its pod has its turn, too.
	if !p.waves() || !desired && v.Candidate == nil {
		return
	}
	w := f.waves[s.turn.wave]
	if w == nil {
		w = &progress{settled: newMoments()}
		f.waves[s.turn.wave] = w
	}
	w.nodes += sign
	w.open += sign * one(!v.Settled || v.Candidate != nil)
	if p.options.Bake > 0 {
		f.ripening.Delete(ripe{w.settled.latest(), s.turn.wave})
		w.settled.set(s.turn.node, at)
		keep(f.ripening, ripe{w.settled.latest(), s.turn.wave}, !w.settled.latest().IsZero())
	}
	keep(f.open, s.turn.wave, w.open > 0)
	if w.nodes == 0 {
		delete(f.waves, s.turn.wave)
	}
}

// Tally returns the tallies.
func (f *Fleet) Tally() Tally { return f.tally }

// Uses says whether a pod of that revision is left, or may have to be made
// where an update does not come yet.
func (f *Fleet) Uses(hash string) bool {
	return f.hashes[hash] > 0 || f.policy.gated && f.lasts[hash] > 0
}

// Verdict returns the last verdict of a node.
func (f *Fleet) Verdict(node string) (Verdict, bool) {
	if s := f.nodes[node]; s != nil {
		return s.verdict, true
	}
	return Verdict{}, false
}

// Rollout returns the next steps of an update that its order and its budget
// allow at this time, at most most of them. The caller sets the nodes anew
// (Deleting or Creating) before it asks again.
func (f *Fleet) Rollout(most int, now time.Time) []Action {
	if f.candidates.Len() == 0 && f.free.Len() == 0 && f.leaving.Len() == 0 {
		return nil
	}
	var steps []Action
	take := func(t *turns, n int, may func(turn) bool, of func(*Verdict) *Action) {
		n = min(n, most-len(steps))
		t.Ascend(func(k turn) bool {
			if n <= 0 || !may(k) {
				return false
			}
			n--
			steps = append(steps, *of(&f.nodes[k.node].verdict))
			return true
		})
	}
	candidate := func(v *Verdict) *Action { return v.Candidate }
	gate := f.Gate(now)
	take(f.leaving, f.tally.Serving-f.tally.Desired, func(turn) bool { return true }, func(v *Verdict) *Action { return v.Leaving })
	before := len(steps)
	take(f.free, most, gate.lets, candidate)
	left := f.left()
	if f.policy.surges {
		left -= len(steps) - before
	}
	take(f.candidates, left, gate.lets, candidate)
	return steps
}

// left is what is left of the budget.
func (f *Fleet) left() int {
	unavailable, surge := f.policy.Budget(f.tally.Desired)
	if f.policy.surges {
		return surge - f.tally.Surging
	}
	return unavailable - f.tally.Unavailable
}

// Status writes the tallies into a copy of a status.
func (f *Fleet) Status(s appsv1.DaemonSetStatus, generation int64) appsv1.DaemonSetStatus {
	t := f.tally
	s.DesiredNumberScheduled = int32(t.Desired)
	s.CurrentNumberScheduled = int32(t.Current)
	s.NumberMisscheduled = int32(t.Misscheduled)
	s.NumberReady = int32(t.Ready)
	s.UpdatedNumberScheduled = int32(t.Updated)
	s.NumberAvailable = int32(t.Available)
	s.NumberUnavailable = int32(t.Desired - t.Available)
	s.ObservedGeneration = max(s.ObservedGeneration, generation)
	return s
}
