package daemonset

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var t0 = time.Unix(1_700_000_000, 0)

func policy(t *testing.T, edit func(*appsv1.DaemonSetSpec)) *Policy {
	t.Helper()
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns"}}
	ds.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	if edit != nil {
		edit(&ds.Spec)
	}
	p, err := Compile(ds, "new", Setting{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func surging(spec *appsv1.DaemonSetSpec) {
	none, one := intstr.FromInt32(0), intstr.FromInt32(1)
	spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{
		Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &none, MaxSurge: &one},
	}
}

// pods reads pods from words, the oldest first:
// "old ready", "new", "old failed", "new ended", "new ready going".
func pods(words ...string) []Pod {
	var all []Pod
	for i, w := range words {
		o := Pod{
			Name: fmt.Sprintf("p%d", i), UID: types.UID(fmt.Sprint(i)), Created: t0.Add(time.Duration(i) * time.Second),
			Phase: corev1.PodRunning, Bound: true,
		}
		for _, f := range strings.Fields(w) {
			switch f {
			case "ready":
				o.Ready, o.ReadySince = true, t0
			case "failed":
				o.Phase = corev1.PodFailed
			case "ended":
				o.Phase = corev1.PodSucceeded
			case "going":
				o.Deleting = true
			case "unbound":
				o.Bound = false
			default:
				o.Hash = f
			}
		}
		all = append(all, o)
	}
	return all
}

// say writes a verdict in one line.
func say(v Verdict) string {
	var s []string
	one := func(prefix string, a *Action) {
		if a == nil {
			return
		}
		what := "create"
		if !a.Create() {
			what = "delete " + a.Pod
		}
		s = append(s, fmt.Sprintf("%s%s %s", prefix, what, a.Cause))
	}
	for i := range v.Actions {
		one("", &v.Actions[i])
	}
	one("budget: ", v.Candidate)
	one("leaving: ", v.Leaving)
	if !v.Wake.IsZero() {
		s = append(s, "wake "+v.Wake.Sub(t0).String())
	}
	t := v.Share
	for _, c := range []struct {
		name string
		n    int
	}{{"misscheduled", t.Misscheduled}, {"unavailable", t.Unavailable}, {"surging", t.Surging}} {
		if c.n > 0 {
			s = append(s, c.name)
		}
	}
	return strings.Join(s, ", ")
}

func TestVerdicts(t *testing.T) {
	yes := Eligibility{Run: true, Continue: true}
	stay := Eligibility{Continue: true, Reason: "taint"}
	no := Eligibility{Reason: "labels"}
	ready5 := func(s *appsv1.DaemonSetSpec) { s.MinReadySeconds = 5 }
	onDelete := func(s *appsv1.DaemonSetSpec) { s.UpdateStrategy.Type = appsv1.OnDeleteDaemonSetStrategyType }
	for _, c := range []struct {
		name string
		edit func(*appsv1.DaemonSetSpec)
		node Node
		want string
	}{
		{"a bare node", nil, Node{Eligibility: yes}, "create Missing, unavailable"},
		{"one being made", nil, Node{Eligibility: yes, Creating: true}, "unavailable"},
		{"no room", nil, Node{Eligibility: yes, Unfit: "cpu"}, "unavailable"},
		{"as it should be", nil, Node{Eligibility: yes, Pods: pods("new ready")}, ""},
		{"new and not ready", nil, Node{Eligibility: yes, Pods: pods("new")}, "unavailable"},
		{"old and ready", nil, Node{Eligibility: yes, Pods: pods("old ready")}, "budget: delete p0 Outdated"},
		{"old and not ready", nil, Node{Eligibility: yes, Pods: pods("old")}, "delete p0 Broken, unavailable"},
		{"old, deleted by hand only", onDelete, Node{Eligibility: yes, Pods: pods("old")}, ""},
		{"the pod goes", nil, Node{Eligibility: yes, Pods: pods("old ready going")}, "unavailable"},
		{"the pod ended and goes", nil, Node{Eligibility: yes, Pods: pods("old ended going")}, "create Missing, unavailable"},
		{"failed", nil, Node{Eligibility: yes, Pods: pods("new failed")}, "delete p0 Failed, unavailable"},
		{
			"failed again", nil,
			Node{Eligibility: yes, Pods: pods("new failed"), Failures: Failures{Delay: time.Minute, Last: t0}},
			"wake 1m0s, unavailable",
		},
		{
			"an old one failed again", nil,
			Node{Eligibility: yes, Pods: pods("old failed"), Failures: Failures{Delay: time.Minute, Last: t0}},
			"delete p0 Broken, wake 1m0s, unavailable",
		},
		{"ended", nil, Node{Eligibility: yes, Pods: pods("new ended")}, "delete p0 Succeeded, unavailable"},
		{"three pods", nil, Node{Eligibility: yes, Pods: pods("new", "new ready", "old ready")}, "delete p1 Excess, delete p2 Excess, unavailable"},
		{"not to be scheduled", nil, Node{Eligibility: stay}, ""},
		{"not to be scheduled, and runs", nil, Node{Eligibility: stay, Pods: pods("new ready")}, "misscheduled"},
		{"not eligible", nil, Node{Eligibility: no}, ""},
		{"not eligible, and runs", nil, Node{Eligibility: no, Pods: pods("new ready", "old going")}, "delete p0 Misplaced, misscheduled"},
		{"not available yet", ready5, Node{Eligibility: yes, Pods: pods("new ready")}, "wake 5s, unavailable"},
		{"old and not available yet", ready5, Node{Eligibility: yes, Pods: pods("old ready")}, "delete p0 Broken, wake 5s, unavailable"},

		{"surge: a bare node", surging, Node{Eligibility: yes}, "create Missing"},
		{"surge: old and ready", surging, Node{Eligibility: yes, Pods: pods("old ready")}, "budget: create Outdated"},
		{"surge: being made", surging, Node{Eligibility: yes, Creating: true, Pods: pods("old ready")}, "surging"},
		{"surge: no room", surging, Node{Eligibility: yes, Unfit: "cpu", Pods: pods("old ready")}, ""},
		{"surge: old and not ready", surging, Node{Eligibility: yes, Pods: pods("old")}, "create Broken"},
		{"surge: both", surging, Node{Eligibility: yes, Pods: pods("old ready", "new")}, "surging"},
		{"surge: the new one is ready", surging, Node{Eligibility: yes, Pods: pods("old ready", "new ready")}, "delete p0 Superseded"},
		{"surge: neither is ready", surging, Node{Eligibility: yes, Pods: pods("old", "new")}, "delete p0 Superseded, surging"},
		{"surge: the old one goes", surging, Node{Eligibility: yes, Pods: pods("old ready going")}, "create Missing"},
		{"surge: too many", surging, Node{Eligibility: yes, Pods: pods("old ready", "old", "new", "new ready")}, "delete p1 Excess, delete p3 Excess, surging"},
		{"surge: not to be scheduled", surging, Node{Eligibility: stay, Pods: pods("old ready")}, "leaving: delete p0 Misplaced, misscheduled"},
		{"surge: not to be scheduled and down", surging, Node{Eligibility: stay, Pods: pods("old")}, "delete p0 Broken, misscheduled"},
		{
			"surge: failed again", surging,
			Node{Eligibility: yes, Pods: pods("new failed"), Failures: Failures{Delay: time.Minute, Last: t0}},
			"wake 1m0s",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.node.Name, c.node.Exists = "n", true
			v := policy(t, c.edit).Decide(c.node, t0)
			if got := say(v); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			for _, a := range v.Actions {
				if a.Reason == "" || a.Node != "n" || !strings.Contains(a.String(), a.Reason) {
					t.Errorf("%+v says no reason", a)
				}
			}
		})
	}
}

// What waits for a node that is gone is removed; what was bound to it is left
// to those who remove the pods of gone nodes.
func TestGoneNode(t *testing.T) {
	v := policy(t, nil).Decide(Node{Name: "n", Pods: pods("new unbound", "new ready")}, t0)
	if got := say(v); got != "delete p0 NodeGone" {
		t.Error(got)
	}
	if v.Share != (Tally{}) {
		t.Errorf("it counts: %+v", v.Share)
	}
}

func TestFailuresBackOff(t *testing.T) {
	var f Failures
	now := t0
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900} {
		f = f.Next(now)
		if f.Delay != want*time.Second {
			t.Fatalf("delay %v, want %v s", f.Delay, want)
		}
		now = now.Add(f.Delay)
	}
	if f = f.Next(now.Add(31 * time.Minute)); f.Delay != FirstFailureDelay {
		t.Errorf("after a long calm: %v", f.Delay)
	}
}

func TestBudget(t *testing.T) {
	for _, c := range []struct {
		unavailable, surge string
		desired            int
		wantU, wantS       int
	}{
		{"1", "0", 10, 1, 0},
		{"10%", "0", 11, 2, 0},
		{"100%", "0", 7, 7, 0},
		{"0", "5%", 3, 0, 1},
		{"0", "0", 3, 1, 0},
		{"0", "0", 0, 0, 0},
	} {
		p := policy(t, func(s *appsv1.DaemonSetSpec) {
			u, g := intstr.Parse(c.unavailable), intstr.Parse(c.surge)
			s.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &u, MaxSurge: &g}
		})
		if u, s := p.Budget(c.desired); u != c.wantU || s != c.wantS {
			t.Errorf("%s and %s of %d: %d and %d", c.unavailable, c.surge, c.desired, u, s)
		}
	}
}

func TestHistory(t *testing.T) {
	revision := func(name, data string, n int64) *appsv1.ControllerRevision {
		r := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: name}}, Revision: n}
		r.Data.Raw = []byte(data)
		return r
	}
	all := []*appsv1.ControllerRevision{revision("c", "C", 3), revision("a", "A", 1), revision("b", "B", 2), revision("a2", "A", 4), revision("d", "D", 5)}
	h := Sort(all, []byte("A"))
	if h.Current != all[3] || len(h.Duplicates) != 1 || h.Duplicates[0] != all[1] || h.Number != 6 {
		t.Errorf("%+v", h)
	}
	var names []string
	for _, r := range h.Expired(1, func(hash string) bool { return hash == "b" }) {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, " "); got != "c d" {
		t.Errorf("expired: %s", got)
	}
	if h := Sort(all, []byte("E")); h.Current != nil || h.Number != 6 {
		t.Errorf("%+v", h)
	}
}
