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

// TestRolloutsText reads testdata/rollouts.txt: fleets, how an update of them
// goes, and what is said of them.
func TestRolloutsText(t *testing.T) {
	golden(t, "testdata/rollouts.txt", func(_, input string) string { return tell(t, input) })
}

func tell(t *testing.T, input string) string {
	t.Helper()
	now := t0.Add(time.Hour)
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{}}}
	ds.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	unavailable, surge := intstr.FromInt32(1), intstr.FromInt32(0)
	first := false
	var lines []string
	var before []appsv1.DaemonSetCondition
	for line := range strings.Lines(input) {
		line = strings.TrimSpace(line)
		key, value, _ := strings.Cut(line, ": ")
		switch key {
		case "maxUnavailable":
			unavailable = intstr.Parse(value)
		case "maxSurge":
			unavailable, surge = intstr.FromInt32(0), intstr.Parse(value)
		case "was":
			before = []appsv1.DaemonSetCondition{{
				Type: Progressing, Status: corev1.ConditionTrue, Reason: value, Message: "revision new: ", LastTransitionTime: metav1.NewTime(t0),
			}}
		case "rolled back":
			ds.Annotations[RolledBackKey] = value
		case "first revision":
			first = true
		default:
			if strings.HasPrefix(line, "node ") {
				lines = append(lines, strings.TrimPrefix(line, "node "))
				continue
			}
			ds.Annotations[OptionPrefix+key] = value
		}
	}
	ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &unavailable, MaxSurge: &surge}
	p, err := Compile(ds, "new", Setting{Own: true})
	if err != nil {
		t.Fatal(err)
	}
	var nodes []Node
	f := NewFleet(p)
	f.Begin(t0)
	f.First(first)
	for _, line := range lines {
		n := readNode(p, line)
		nodes = append(nodes, n)
		f.Set(n, now)
	}
	r := f.Report(before, now)
	var out strings.Builder
	for _, c := range []struct {
		name string
		c    Condition
	}{{"Available", r.Available}, {"Progressing", r.Progressing}, {"Degraded", r.Degraded}} {
		fmt.Fprintf(&out, "%s=%s %s: %s\n", c.name, c.c.Status, c.c.Reason, c.c.Message)
	}
	if r.Rollback {
		out.WriteString("it is rolled back\n")
	}
	forecast := p.Forecast(nodes, before, t0, now)
	for i, s := range forecast.Steps {
		fmt.Fprintf(&out, "%d.", i+1)
		if s.Wave != "" {
			fmt.Fprintf(&out, " %s:", s.Wave)
		}
		if s.Bake > 0 {
			fmt.Fprintf(&out, " wait %s", s.Bake)
		}
		for j, a := range s.Actions {
			if j > 0 {
				out.WriteString(" +")
			}
			fmt.Fprintf(&out, " %v", a)
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(&out, "then %s\n", forecast.End)
	return out.String()
}

// readNode reads "NAME [LABEL=VALUE…] [lost] | POD, POD": pods are words as in
// verdict_test.go, and "pull", "crash" for what is wrong with one.
func readNode(p *Policy, line string) Node {
	left, right, _ := strings.Cut(line, "|")
	words := strings.Fields(left)
	labels := map[string]string{}
	n := Node{Name: words[0], Exists: true, Eligibility: Eligibility{Run: true, Continue: true}}
	for _, w := range words[1:] {
		switch key, value, isLabel := strings.Cut(w, "="); {
		case isLabel:
			labels[key] = value
		case w == "lost":
			// The taint of a lost node keeps new pods away.
			n.NotReady, n.Run, n.Reason = true, false, "taint node.kubernetes.io/unreachable:NoSchedule is not tolerated"
		case w == "unfit":
			n.Unfit = "Insufficient cpu: 2 requested, 1 of 4 free"
		}
	}
	n.Wave = p.WaveOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: labels}})
	if strings.TrimSpace(right) == "" {
		return n
	}
	for i, w := range strings.Split(right, ",") {
		trouble := ""
		for word, what := range map[string]string{"pull": "ImagePull", "crash": "crash loop"} {
			if strings.Contains(w, word) {
				trouble, w = what, strings.ReplaceAll(w, word, "")
			}
		}
		o := pods(w)[0]
		o.Name, o.Trouble = fmt.Sprintf("p%s", strings.TrimPrefix(n.Name, "n")), trouble
		if i > 0 {
			o.Name += strings.Repeat("'", i)
		}
		o.UID = types.UID(o.Name)
		n.Pods = append(n.Pods, o)
	}
	return n
}
