package daemonset

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"github.com/google/btree"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Wave is a part of the fleet that is updated together: the canary, the nodes
// with one value of the order-by label, or all. Waves go one after the other.
type Wave struct {
	// After is false for the canary, and for all where there is none.
	After bool
	// Unlabelled nodes lack the order-by label and go last.
	Unlabelled bool
	// Value of the order-by label.
	Value string
}

// WaveOf returns a node's wave.
func (p *Policy) WaveOf(node *corev1.Node) Wave {
	var w Wave
	if c := p.options.Canary; c != nil {
		if c.Matches(labels.Set(node.Labels)) {
			return w
		}
		w.After = true
	}
	if key := p.options.OrderBy; key != "" {
		value, ok := node.Labels[key]
		w.Value, w.Unlabelled = value, !ok
	}
	return w
}

// WaveName names a wave for people, "" if there is only one.
func (p *Policy) WaveName(w Wave) string {
	o := &p.options
	switch {
	case o.Canary != nil && !w.After:
		return "the canary (" + o.Canary.String() + ")"
	case o.OrderBy == "" && o.Canary == nil:
		return ""
	case o.OrderBy == "":
		return "the rest"
	case w.Unlabelled:
		return "the nodes without " + o.OrderBy
	}
	return o.OrderBy + "=" + w.Value
}

func compareWaves(a, b Wave) int {
	if c := compareBools(a.After, b.After); c != 0 {
		return c
	}
	if c := compareBools(a.Unlabelled, b.Unlabelled); c != 0 {
		return c
	}
	return CompareValues(a.Value, b.Value)
}

func compareBools(a, b bool) int { return one(a) - one(b) }

// CompareValues orders label values as updates do: numbers by size and before words.
func CompareValues(a, b string) int {
	if a == b {
		return 0
	}
	x, errX := strconv.ParseUint(a, 10, 63)
	y, errY := strconv.ParseUint(b, 10, 63)
	switch {
	case errX == nil && errY == nil:
		return cmp.Or(cmp.Compare(x, y), strings.Compare(a, b))
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return strings.Compare(a, b)
}

// turn is a node's turn in an update.
type turn struct {
	wave Wave
	node string
}

func (t turn) before(o turn) bool {
	if c := compareWaves(t.wave, o.wave); c != 0 {
		return c < 0
	}
	return t.node < o.node
}

type turns = btree.BTreeG[turn]

func newTurns() *turns { return btree.NewG(16, turn.before) }

// moments holds one time for each of some nodes, and knows the latest.
type moments struct {
	of   map[string]int64 // node → Unix ns
	tree *btree.BTreeG[moment]
}

type moment struct {
	at   int64
	node string
}

func newMoments() moments {
	return moments{of: map[string]int64{}, tree: btree.NewG(16, func(a, b moment) bool {
		return a.at < b.at || a.at == b.at && a.node < b.node
	})}
}

// set notes a node's time, or forgets it where the time is zero.
func (m *moments) set(node string, t time.Time) {
	if at, ok := m.of[node]; ok {
		m.tree.Delete(moment{at, node})
		delete(m.of, node)
	}
	if !t.IsZero() {
		m.of[node] = t.UnixNano()
		m.tree.ReplaceOrInsert(moment{t.UnixNano(), node})
	}
}

// latest returns the latest of all times, zero if there is none.
func (m *moments) latest() time.Time {
	last, ok := m.tree.Max()
	if !ok {
		return time.Time{}
	}
	return time.Unix(0, last.at)
}

// ripe is a wave, and when the last of its nodes was done.
type ripe struct {
	at   time.Time
	wave Wave
}

func newRipening() *btree.BTreeG[ripe] {
	return btree.NewG(8, func(a, b ripe) bool {
		return cmp.Or(a.at.Compare(b.at), compareWaves(a.wave, b.wave)) < 0
	})
}

// progress is how far one wave is.
type progress struct {
	// nodes are the wave's eligible nodes, open those of them to which the
	// update has still to come or which are not back from it.
	nodes, open int
	// settled is when each node was done.
	settled moments
}

// tail splits the eligible nodes in two: the last ones in order, which a
// partition keeps from being updated, and the others.
type tail struct {
	head, tail *turns
	want       int // how many are to be in the tail
	// open counts the nodes of the head that are not done.
	open int
	done map[string]bool
}

func newTail() *tail { return &tail{head: newTurns(), tail: newTurns(), done: map[string]bool{}} }

// set notes a node, or forgets it.
func (t *tail) set(k turn, in, done bool) {
	if _, ok := t.head.Delete(k); ok && !t.done[k.node] {
		t.open--
	}
	t.tail.Delete(k)
	delete(t.done, k.node)
	if !in {
		return
	}
	t.done[k.node] = done
	if t.holds(k) {
		t.tail.ReplaceOrInsert(k)
		return
	}
	t.head.ReplaceOrInsert(k)
	t.open += one(!done)
}

// resize makes the tail so many nodes long.
func (t *tail) resize(n int) {
	t.want = n
	for t.tail.Len() > n {
		k, _ := t.tail.DeleteMin()
		t.head.ReplaceOrInsert(k)
		t.open += one(!t.done[k.node])
	}
	for t.tail.Len() < n && t.head.Len() > 0 {
		k, _ := t.head.DeleteMax()
		t.tail.ReplaceOrInsert(k)
		t.open -= one(!t.done[k.node])
	}
}

// holds says whether a node's turn is in the tail, be the node eligible or not.
func (t *tail) holds(k turn) bool {
	first, ok := t.tail.Min()
	return t.tail.Len() < t.want || ok && !k.before(first)
}
