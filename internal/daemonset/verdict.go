package daemonset

import (
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Node is the state of one node as one DaemonSet sees it.
type Node struct {
	Name string
	// Exists is false where pods are pinned to a node that is gone.
	Exists bool
	Eligibility
	// Pods are the DaemonSet's own pods on the node. A pod whose deletion was
	// asked for by us but is not seen yet has Deleting and Asked set.
	Pods []Pod
	// Creating: a pod is being made and is not seen yet.
	Creating bool
	// Wave is the node's wave (Policy.WaveOf).
	Wave Wave
	// NotReady: the node says that it is not, or nothing has been heard of it.
	NotReady bool
	// Unfit says why a pod would not fit on the node, "" if it would or if that
	// is not known yet.
	Unfit    string
	Failures Failures
}

// Failures is the backoff of a node whose pods fail.
type Failures struct {
	Delay time.Duration
	Last  time.Time
}

// Failed pods are removed at once the first time, then with these delays.
const (
	FirstFailureDelay = time.Second
	MaxFailureDelay   = 15 * time.Minute
)

// Next is the backoff after one more failed pod was removed.
func (f Failures) Next(now time.Time) Failures {
	if f.Delay == 0 || now.Sub(f.Last) > 2*MaxFailureDelay {
		return Failures{Delay: FirstFailureDelay, Last: now}
	}
	return Failures{Delay: min(2*f.Delay, MaxFailureDelay), Last: now}
}

func (f Failures) until() time.Time { return f.Last.Add(f.Delay) }

// Cause says which rule an action comes from.
type Cause string

// Causes.
const (
	Missing    Cause = "Missing"    // an eligible node has no pod
	Misplaced  Cause = "Misplaced"  // the node is no longer one of its nodes
	Failed     Cause = "Failed"     // the pod failed
	Succeeded  Cause = "Succeeded"  // the pod ended, daemons do not
	Excess     Cause = "Excess"     // a node has more pods than it should
	Outdated   Cause = "Outdated"   // an older revision, within the budget
	Broken     Cause = "Broken"     // an older revision that is not available: costs no budget
	Superseded Cause = "Superseded" // the new pod beside it is available
	NodeGone   Cause = "NodeGone"   // the pod waits for a node that is gone
)

// Action is one thing to do on one node, with its reason. Pod is empty where a
// pod is to be made.
type Action struct {
	Node   string
	Pod    string
	UID    types.UID
	Cause  Cause
	Reason string
}

// Create says whether the action makes a pod; otherwise it deletes one.
func (a Action) Create() bool { return a.Pod == "" }

func (a Action) String() string {
	if a.Create() {
		return fmt.Sprintf("create a pod on %s: %s", a.Node, a.Reason)
	}
	return fmt.Sprintf("delete pod %s on %s: %s", a.Pod, a.Node, a.Reason)
}

// Verdict is the judgement of one node.
type Verdict struct {
	Eligibility
	// Actions are due now, whatever other nodes do.
	Actions []Action
	// Candidate is what an update would do here within its budget.
	Candidate *Action
	// Leaving would remove the pod of a node that is no longer eligible, once
	// there are enough others.
	Leaving *Action
	// Free: the candidate uses no budget.
	Free bool
	// Share is what the node adds to the tallies.
	Share Tally
	// Settled: an update has nothing left to do here.
	Settled bool
	// SettledAt is since when, zero where no pod tells.
	SettledAt time.Time
	// Trouble says in a word or two why the node's pod is not available, if
	// that is no part of starting one.
	Trouble string
	// Wake is when the verdict changes without an event, if ever.
	Wake time.Time
}

func (v *Verdict) wake(t time.Time) {
	if v.Wake.IsZero() || t.Before(v.Wake) {
		v.Wake = t
	}
}

// judge carries one decision.
type judge struct {
	p   *Policy
	n   *Node
	now time.Time
	v   Verdict
	// present leaves out pods that ended and are being deleted: nothing is
	// left to do for those. live also leaves out all that are being deleted.
	present, live []Pod
	gone          map[types.UID]bool
	made          bool
}

// Decide judges one node. The node's pods are put in order, oldest first.
func (p *Policy) Decide(n Node, now time.Time) Verdict {
	j := judge{p: p, n: &n, now: now, v: Verdict{Eligibility: n.Eligibility}}
	oldestFirst(n.Pods)
	for i := range n.Pods {
		o := n.Pods[i]
		if o.Deleting && o.ended() {
			continue
		}
		j.present = append(j.present, o)
		if !o.Deleting {
			j.live = append(j.live, o)
		}
	}
	if !n.Exists {
		for i := range j.live {
			if !j.live[i].Bound && !p.updatesOnly {
				j.delete(&j.live[i], NodeGone, "the node is gone and the pod was never bound to it")
			}
		}
		return j.v
	}
	j.count()
	if !p.updatesOnly {
		j.manage()
	}
	if p.rolling && (n.Run || len(j.present) > 0) {
		j.update()
	}
	j.settle()
	return j.v
}

func (j *judge) delete(o *Pod, cause Cause, format string, args ...any) {
	if !j.gone[o.UID] {
		j.do(j.action(o, cause, format, args...))
	}
}

func (j *judge) do(a Action) {
	if !a.Create() {
		if j.gone == nil {
			j.gone = map[types.UID]bool{}
		}
		j.gone[a.UID] = true
	}
	j.v.Actions = append(j.v.Actions, a)
}

func (j *judge) create(cause Cause, format string, args ...any) {
	if !j.n.Creating && !j.made && j.n.Unfit == "" {
		j.made = true
		j.v.Actions = append(j.v.Actions, j.action(&Pod{}, cause, format, args...))
	}
}

func (j *judge) action(o *Pod, cause Cause, format string, args ...any) Action {
	return Action{Node: j.n.Name, Pod: o.Name, UID: o.UID, Cause: cause, Reason: fmt.Sprintf(format, args...)}
}

func (j *judge) updated(o *Pod) bool {
	return j.p.Hash != "" && o.Hash == j.p.Hash || j.p.generation != "" && o.Generation == j.p.generation
}

// available says whether the pod has been ready for minReadySeconds, and asks
// to be woken when it will have been.
func (j *judge) available(o *Pod) bool {
	if !o.Ready {
		return false
	}
	if j.p.minReady == 0 {
		return true
	}
	if o.ReadySince.IsZero() {
		return false
	}
	at := o.ReadySince.Add(j.p.minReady)
	if at.After(j.now) {
		j.v.wake(at)
		return false
	}
	return true
}

// count fills in the node's share of the status. The oldest pod counts.
func (j *judge) count() {
	s := &j.v.Share
	has := len(j.present) > 0
	if !j.n.Run {
		s.Misscheduled = one(has)
		return
	}
	s.Desired = 1
	if !has {
		return
	}
	o := &j.present[0]
	s.Current = 1
	s.Ready = one(o.Ready)
	s.Available = one(j.available(o))
	s.Updated = one(j.updated(o))
}

// manage keeps one pod on each eligible node and none elsewhere; an update is
// not its business.
func (j *judge) manage() {
	switch {
	case j.n.Run && len(j.present) == 0:
		j.create(Missing, "the node is eligible and has no pod")
	case !j.n.Continue:
		for i := range j.live {
			j.delete(&j.live[i], Misplaced, "%s", j.n.Reason)
		}
	default:
		j.tidy()
	}
}

// tidy removes pods that ended and pods in excess.
func (j *judge) tidy() {
	var running []Pod
	waiting := false
	for i := range j.live {
		o := &j.live[i]
		switch o.Phase {
		case corev1.PodFailed:
			if until := j.n.Failures.until(); j.n.Failures.Delay > 0 && until.After(j.now) {
				j.v.wake(until)
				waiting = true
				continue
			}
			j.delete(o, Failed, "the pod failed")
		case corev1.PodSucceeded:
			j.delete(o, Succeeded, "the pod ended and a daemon should not")
		default:
			running = append(running, *o)
		}
	}
	if !j.p.surges {
		for i := 1; i < len(running); i++ {
			j.delete(&running[i], Excess, "%s is older and runs on the node too", running[0].Name)
		}
		return
	}
	if len(running) == 0 && j.n.Run && !waiting {
		j.create(Missing, "the node is eligible and no pod of it stays")
		return
	}
	j.tidySurge(running)
}

// tidySurge keeps at most one pod of the current and one of an older
// revision, and drops the older one once it is of no more use.
func (j *judge) tidySurge(running []Pod) {
	var young, old *Pod
	for i := range running {
		o := &running[i]
		slot := &old
		if o.Hash == j.p.Hash {
			slot = &young
		}
		if *slot == nil {
			*slot = o
			continue
		}
		j.delete(o, Excess, "%s is older and of the same revision", (*slot).Name)
	}
	if young == nil || old == nil {
		return
	}
	switch {
	case !old.Ready:
		j.delete(old, Superseded, "it is not ready and %s is newer", young.Name)
	case j.available(young):
		j.delete(old, Superseded, "%s of the current revision is available", young.Name)
	}
}

// update says what a rolling update does on the node.
func (j *judge) update() {
	var young, old *Pod
	for i := range j.live {
		o := &j.live[i]
		slot := &old
		if j.updated(o) {
			slot = &young
		}
		if *slot != nil {
			// Pods in excess go first; until then the node counts as down.
			j.v.Share.Unavailable, j.v.Share.Surging = one(!j.p.surges), one(j.p.surges)
			return
		}
		*slot = o
	}
	if j.p.surges {
		j.updateSurging(young, old)
		return
	}
	switch {
	case j.out() && young == nil && old != nil && !j.gone[old.UID]:
		j.v.Share.Skipped = 1
	case j.out():
		// It was updated, or is being updated, and then was lost.
		j.v.Share.Unavailable = 1
	case (young == nil) == (old == nil):
		j.v.Share.Unavailable = 1
	case young != nil:
		j.v.Share.Unavailable = one(!j.available(young))
	case !j.available(old):
		j.v.Share.Unavailable = 1
		if j.gone[old.UID] {
			break
		}
		a := j.action(old, Broken, "revision %s → %s; it is not available", name(old.Hash), j.p.Hash)
		if !j.p.gated {
			j.do(a)
			break
		}
		j.v.Candidate, j.v.Free = &a, true
	case j.gone[old.UID]:
	default:
		c := j.action(old, Outdated, "revision %s → %s", name(old.Hash), j.p.Hash)
		j.v.Candidate = &c
	}
}

func (j *judge) updateSurging(young, old *Pod) {
	s := &j.v.Share
	switch {
	case old != nil:
		s.Serving = one(j.available(old))
	case young != nil:
		s.Serving = one(j.available(young))
	}
	// A pod that is only asked to go still runs.
	asked := slices.ContainsFunc(j.present, func(o Pod) bool { return o.Asked })
	switch {
	case old == nil:
		s.Surging = one(j.out() || asked)
	case young == nil && asked:
		s.Surging = 1
	case young != nil:
		if j.available(young) {
			j.delete(old, Superseded, "%s of the current revision is available", young.Name)
		} else {
			s.Surging = 1
		}
	case j.n.Creating:
		s.Surging = 1
	case j.out():
		s.Skipped = 1
	case s.Serving == 0 && !j.n.Run:
		j.delete(old, Broken, "it is not available and the node is no longer eligible: %s", j.n.Reason)
	case s.Serving == 0 && j.p.gated:
		if j.n.Unfit == "" {
			c := j.action(&Pod{}, Broken, "revision %s → %s; the old pod is not available", name(old.Hash), j.p.Hash)
			j.v.Candidate, j.v.Free = &c, true
		}
	case s.Serving == 0:
		j.create(Broken, "revision %s → %s; the old pod is not available", name(old.Hash), j.p.Hash)
	case j.gone[old.UID]:
	case j.n.Run && j.n.Unfit != "":
	case !j.n.Run:
		c := j.action(old, Misplaced, "%s; enough other nodes are available", j.n.Reason)
		j.v.Leaving = &c
	default:
		c := j.action(&Pod{}, Outdated, "revision %s → %s, beside the old pod", name(old.Hash), j.p.Hash)
		j.v.Candidate = &c
	}
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

func name(hash string) string {
	if hash == "" {
		return "unknown"
	}
	return hash
}
