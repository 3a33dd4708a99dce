package daemonset

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/btree"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Conditions of a DaemonSet.
const (
	// Available: the nodes without an available pod are no more than
	// maxUnavailable.
	Available appsv1.DaemonSetConditionType = "Available"
	// Progressing: an update is done or goes on. False: it has halted; Unknown:
	// it is paused.
	Progressing appsv1.DaemonSetConditionType = "Progressing"
	// Degraded: something is wrong that waiting does not mend.
	Degraded appsv1.DaemonSetConditionType = "Degraded"
)

// Reasons of the condition Progressing.
const (
	UpdateComplete           = "UpdateComplete"
	UpdatingReturned         = "UpdatingReturned" // nodes that came after the update was complete
	Updating                 = "Updating"
	Baking                   = "Baking"
	PartitionReached         = "PartitionReached"
	Blocked                  = "Blocked" // all of the budget is used by nodes in trouble
	OnDelete                 = "OnDelete"
	Paused                   = "Paused"
	WrongAnnotation          = "WrongAnnotation"
	ProgressDeadlineExceeded = "ProgressDeadlineExceeded"
)

// NoRuntime is the reason of the condition Degraded where no node is eligible
// and some would be if they had the runtime that the pod asks for.
const NoRuntime = "NoRuntime"

// RolledBackReason is the reason of the condition Degraded after a rollback.
const RolledBackReason = "RolledBack"

// atWork says whether an update with that reason has something to do. The time
// of the condition Progressing is since when it has its status and is, or is
// not, at work.
func atWork(reason string) bool {
	switch reason {
	case Updating, Baking, Blocked, ProgressDeadlineExceeded:
		return true
	}
	return false
}

// Report is the state of a DaemonSet in words.
type Report struct {
	Available, Progressing, Degraded Condition
	// Failed: the update has exceeded its deadline.
	Failed bool
	// Rollback: and is to be rolled back.
	Rollback bool
	// Wake is when the report, or what an update may do, changes without an
	// event, if ever.
	Wake time.Time
}

// Condition is what a condition says, without its times.
type Condition struct {
	Status  corev1.ConditionStatus
	Reason  string
	Message string
}

// Report tells how the DaemonSet is, given the conditions it has now: they
// remember whether the current revision was on all nodes once, and since when
// there is something to do, so that a controller that starts anew knows it too.
func (f *Fleet) Report(before []appsv1.DaemonSetCondition, now time.Time) Report {
	var r Report
	started, completed := time.Time{}, false
	if c := progressingIn(before); c != nil {
		at := c.LastTransitionTime.Time
		switch {
		case c.Reason == UpdateComplete || c.Reason == UpdatingReturned:
			completed = strings.HasPrefix(c.Message, f.ofRevision())
			started = now
		case !atWork(c.Reason):
			started = now
		case c.Status == corev1.ConditionTrue:
			started = at
		}
	}
	f.progressing(&r, now, started, completed)
	r.Rollback = r.Failed && f.policy.options.Rollback && f.noRollback() == ""
	r.Available = f.availability()
	r.Degraded = Condition{Status: corev1.ConditionFalse, Reason: "AsExpected"}
	switch hard, _ := f.troubled(); {
	case f.policy.Hash != "" && f.policy.rolled.To == f.policy.Hash:
		r.Degraded = Condition{corev1.ConditionTrue, RolledBackReason, f.policy.rolled.String()}
	case r.Failed, r.Progressing.Reason == WrongAnnotation:
		r.Degraded = Condition{corev1.ConditionTrue, r.Progressing.Reason, r.Progressing.Message}
	case f.tally.Desired == 0 && len(f.lacking) > 0:
		r.Degraded = Condition{corev1.ConditionTrue, NoRuntime, f.lackText()}
	case hard > 0:
		r.Degraded = Condition{corev1.ConditionTrue, "PodsInTrouble", f.causes()}
	}
	for _, c := range []*Condition{&r.Available, &r.Progressing, &r.Degraded} {
		c.Message = shorten(c.Message)
	}
	return r
}

func (f *Fleet) progressing(r *Report, now, started time.Time, completed bool) {
	p, g := f.policy, f.Gate(now)
	r.Wake = g.Until
	todo := f.tally.Open
	if p.partitioned() {
		todo = f.tail.open
	}
	say := func(status corev1.ConditionStatus, reason string, parts ...string) {
		r.Progressing = Condition{status, reason, f.ofRevision() + join(parts...)}
	}
	updated := fmt.Sprintf("%d of %d updated", f.tally.Updated, f.tally.Desired)
	if f.tally.Skipped > 0 {
		updated += fmt.Sprintf(", %d not ready and left for their return", f.tally.Skipped)
	}
	if !p.rolling {
		say(corev1.ConditionTrue, OnDelete, updated, "pods are replaced when they are deleted", f.causes())
		return
	}
	switch {
	case len(p.wrong) > 0:
		say(corev1.ConditionFalse, WrongAnnotation, g.Why, updated)
		return
	case p.options.Paused:
		say(corev1.ConditionUnknown, Paused, updated, f.causes())
		return
	case completed && f.candidates.Len()+f.free.Len() > 0:
		say(corev1.ConditionTrue, UpdatingReturned, updated, f.causes())
		return
	case completed:
		say(corev1.ConditionTrue, UpdateComplete, updated, f.causes())
		return
	case todo == 0 && p.partitioned():
		say(corev1.ConditionTrue, PartitionReached, updated, fmt.Sprintf("the last %d keep their revision", f.tail.tail.Len()), f.causes())
		return
	case todo == 0:
		say(corev1.ConditionTrue, UpdateComplete, updated, f.causes())
		return
	case !g.Until.IsZero():
		say(corev1.ConditionTrue, Baking, updated,
			fmt.Sprintf("%s waits until %s for what was updated to bake", p.WaveName(g.Wave), stamp(g.Until)), f.causes())
		return
	}
	at := ""
	if g.InWaves {
		at = "at " + p.WaveName(g.Wave)
	}
	if d := p.options.Deadline; d > 0 {
		last := f.lastProgress(g, started)
		if end := last.Add(d); end.After(now) {
			r.Wake = end
		} else {
			r.Failed = true
			say(corev1.ConditionFalse, ProgressDeadlineExceeded,
				fmt.Sprintf("no progress for longer than %s", d), f.noRollback(), updated, at, f.awayText(), f.causes())
			return
		}
	}
	hard, _ := f.troubled()
	if hard+f.away.Len() > 0 && f.left() <= 0 {
		say(corev1.ConditionTrue, Blocked, "nodes in trouble use all of the budget", updated, at, f.awayText(), f.causes())
		return
	}
	say(corev1.ConditionTrue, Updating, updated, at, f.awayText(), f.causes())
}

// noRollback says why an update that has failed is not rolled back, "" if it is
// or if nobody asks for that.
func (f *Fleet) noRollback() string {
	if s := f.policy.rolled.again(f.policy.Hash); s != "" {
		return s
	}
	if f.policy.options.Rollback && f.first {
		return "it is not rolled back: there is no earlier revision"
	}
	return ""
}

// ofRevision begins the message of the condition Progressing: by it a controller
// that starts anew knows which revision it is about.
func (f *Fleet) ofRevision() string { return "revision " + name(f.policy.Hash) + ": " }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// lastProgress is when a node was last done, or when there was first something
// to do.
func (f *Fleet) lastProgress(g Gate, started time.Time) time.Time {
	last := f.since
	times := []time.Time{started, f.settled.latest()}
	if g.InWaves && f.policy.options.Bake > 0 {
		times = append(times, f.baked(g.Wave))
	}
	for _, t := range times {
		if t.After(last) {
			last = t
		}
	}
	return last
}

func (f *Fleet) availability() Condition {
	t := f.tally
	have := fmt.Sprintf("%d of %d nodes have an available pod", t.Available, t.Desired)
	may, _ := f.policy.Budget(t.Desired)
	if f.policy.surges {
		may = 0
	}
	switch down := t.Desired - t.Available; {
	case t.Desired == 0:
		return Condition{corev1.ConditionTrue, "NoNodes", join("no node is eligible", f.lackText())}
	case down == 0:
		return Condition{corev1.ConditionTrue, "AllAvailable", join(have, f.lackText())}
	case down <= may:
		return Condition{corev1.ConditionTrue, "MostAvailable", have + "; " + f.causes()}
	}
	return Condition{corev1.ConditionFalse, "TooFewAvailable", have + "; " + f.causes()}
}

// troubled counts the nodes in trouble, and lists the causes, the most frequent
// first.
func (f *Fleet) troubled() (nodes int, causes []string) {
	causes = slices.SortedFunc(maps.Keys(f.troubles), func(a, b string) int {
		return cmp.Or(cmp.Compare(f.troubles[b].Len(), f.troubles[a].Len()), cmp.Compare(a, b))
	})
	for _, t := range f.troubles {
		nodes += t.Len()
	}
	return nodes, causes
}

// Limits of a message: causes that are named, nodes named for each, bytes.
const (
	maxCauses  = 4
	maxNamed   = 3
	maxMessage = 1000
)

// causes says why nodes are without an available pod: by name where they are
// few, by count where they are many.
func (f *Fleet) causes() string {
	down := f.tally.Desired - f.tally.Available
	if down == 0 {
		return ""
	}
	nodes, causes := f.troubled()
	var s []string
	for i, c := range causes {
		t := f.troubles[c]
		if i == maxCauses {
			s = append(s, fmt.Sprintf("%d causes more", len(causes)-i))
			break
		}
		if nodes <= maxNamed {
			for _, node := range first(t, maxNamed) {
				s = append(s, node+" "+c)
			}
			continue
		}
		more := ""
		if t.Len() > maxNamed {
			more = ", …"
		}
		s = append(s, fmt.Sprintf("%d %s (%s%s)", t.Len(), c, strings.Join(first(t, maxNamed), ", "), more))
	}
	if rest := down - nodes; rest > 0 {
		s = append(s, fmt.Sprintf("%d starting", rest))
	}
	return fmt.Sprintf("%d unavailable: %s", down, strings.Join(s, ", "))
}

// awayText names nodes that are not eligible any more and use the budget: they
// were lost, or closed to new pods, in the middle of the update.
func (f *Fleet) awayText() string {
	n := f.away.Len()
	if n == 0 {
		return ""
	}
	more := ""
	if n > maxNamed {
		more = ", …"
	}
	return fmt.Sprintf("%d lost in the update or closed to new pods: %s%s", n, strings.Join(first(f.away, maxNamed), ", "), more)
}

// lackText counts the nodes that are left out because they cannot run the pod.
func (f *Fleet) lackText() string {
	whats := slices.SortedFunc(maps.Keys(f.lacking), func(a, b string) int {
		return cmp.Or(cmp.Compare(f.lacking[b], f.lacking[a]), cmp.Compare(a, b))
	})
	var s []string
	for i, what := range whats {
		if i == maxCauses {
			s = append(s, fmt.Sprintf("%d causes more", len(whats)-i))
			break
		}
		s = append(s, fmt.Sprintf("%d left out: %s", f.lacking[what], what))
	}
	return strings.Join(s, "; ")
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

func first(t *btree.BTreeG[string], n int) []string {
	var names []string
	t.Ascend(func(name string) bool {
		names = append(names, name)
		return len(names) < n
	})
	return names
}

func shorten(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-len("…")], "") + "…"
}

// Conditions returns the conditions of a status with those of the report put
// in. A condition keeps its time until its status changes, Progressing also
// until it comes to work or to rest; others are left as they are.
func (r *Report) Conditions(before []appsv1.DaemonSetCondition, now time.Time) []appsv1.DaemonSetCondition {
	after := slices.Clone(before)
	put := func(t appsv1.DaemonSetConditionType, c Condition) {
		want := appsv1.DaemonSetCondition{
			Type: t, Status: c.Status, Reason: c.Reason, Message: c.Message,
			// The API keeps seconds.
			LastTransitionTime: metav1.NewTime(now.Truncate(time.Second)),
		}
		i := slices.IndexFunc(after, func(c appsv1.DaemonSetCondition) bool { return c.Type == t })
		if i < 0 {
			after = append(after, want)
			return
		}
		was := after[i]
		if was.Status == want.Status && (t != Progressing || atWork(was.Reason) == atWork(want.Reason)) {
			want.LastTransitionTime = was.LastTransitionTime
		}
		after[i] = want
	}
	put(Available, r.Available)
	put(Progressing, r.Progressing)
	put(Degraded, r.Degraded)
	return after
}

// WithoutReport returns the conditions without those of a report.
func WithoutReport(before []appsv1.DaemonSetCondition) []appsv1.DaemonSetCondition {
	if progressingIn(before) == nil {
		return before
	}
	return slices.DeleteFunc(slices.Clone(before), func(c appsv1.DaemonSetCondition) bool {
		return c.Type == Available || c.Type == Progressing || c.Type == Degraded
	})
}

func progressingIn(conditions []appsv1.DaemonSetCondition) *appsv1.DaemonSetCondition {
	for i := range conditions {
		if conditions[i].Type == Progressing {
			return &conditions[i]
		}
	}
	return nil
}
