package daemonset

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/daemon/util"
	"pgregory.net/rapid"
)

// These tests hold what must be the same as upstream's to upstream's code.

var (
	keys    = rapid.SampledFrom([]string{"a", "b", corev1.TaintNodeNotReady, corev1.TaintNodeUnschedulable, corev1.TaintNodeNetworkUnavailable})
	values  = rapid.SampledFrom([]string{"", "1", "2"})
	effects = rapid.SampledFrom([]corev1.TaintEffect{
		corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule,
	})
)

func drawNode(t *rapid.T) *corev1.Node {
	n := &corev1.Node{}
	n.Name = rapid.SampledFrom([]string{"n1", "n2"}).Draw(t, "node name")
	n.Labels = rapid.MapOf(keys, values).Draw(t, "labels")
	for range rapid.IntRange(0, 3).Draw(t, "taints") {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{
			Key: keys.Draw(t, "key"), Value: values.Draw(t, "value"), Effect: effects.Draw(t, "effect"),
		})
	}
	return n
}

func drawDaemonSet(t *rapid.T) *appsv1.DaemonSet {
	ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns", UID: "u"}}
	labels := map[string]string{"app": "d"}
	ds.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	ds.Spec.Template.Labels = labels
	if rapid.Bool().Draw(t, "generation") {
		ds.Annotations = map[string]string{appsv1.DeprecatedTemplateGeneration: "3"}
	}
	spec := &ds.Spec.Template.Spec
	spec.HostNetwork = rapid.Bool().Draw(t, "hostNetwork")
	spec.NodeName = rapid.SampledFrom([]string{"", "", "n1"}).Draw(t, "nodeName")
	spec.Containers = []corev1.Container{{Name: "c", Image: rapid.SampledFrom([]string{"x", "y<&>"}).Draw(t, "image")}}
	if rapid.IntRange(0, 2).Draw(t, "selects") == 0 {
		spec.NodeSelector = rapid.MapOfN(keys, values, 1, 2).Draw(t, "nodeSelector")
	}
	if rapid.IntRange(0, 2).Draw(t, "has affinity") == 0 {
		spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: drawTerms(t)},
		}}
	}
	for range rapid.IntRange(0, 3).Draw(t, "tolerations") {
		spec.Tolerations = append(spec.Tolerations, corev1.Toleration{
			Key:      rapid.OneOf(keys, rapid.Just("")).Draw(t, "key"),
			Operator: rapid.SampledFrom([]corev1.TolerationOperator{"", corev1.TolerationOpEqual, corev1.TolerationOpExists}).Draw(t, "operator"),
			Value:    values.Draw(t, "value"),
			Effect:   rapid.OneOf(effects, rapid.Just(corev1.TaintEffect(""))).Draw(t, "effect"),
		})
	}
	return ds
}

func drawTerms(t *rapid.T) []corev1.NodeSelectorTerm {
	var terms []corev1.NodeSelectorTerm
	for range rapid.IntRange(0, 2).Draw(t, "terms") {
		var term corev1.NodeSelectorTerm
		for range rapid.IntRange(0, 2).Draw(t, "expressions") {
			term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{
				Key: keys.Draw(t, "key"),
				Operator: rapid.SampledFrom([]corev1.NodeSelectorOperator{
					corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn, corev1.NodeSelectorOpExists, corev1.NodeSelectorOpGt, "Bad",
				}).Draw(t, "operator"),
				Values: rapid.SliceOfN(values, 0, 2).Draw(t, "values"),
			})
		}
		if rapid.IntRange(0, 3).Draw(t, "by name") == 0 {
			term.MatchFields = []corev1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{"n2"}}}
		}
		terms = append(terms, term)
	}
	return terms
}

func TestEligibleAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds, node := drawDaemonSet(t), drawNode(t)
		p, err := Compile(ds, "h", Setting{})
		if err != nil {
			t.Fatal(err)
		}
		got := p.Eligible(node)
		run, keep := daemon.NodeShouldRunDaemonPod(klog.Background(), node, ds)
		if got.Run != run || got.Continue != keep {
			t.Fatalf("%+v, upstream says run %v, continue %v", got, run, keep)
		}
		if (got.Reason == "") != (got.Run && got.Continue) {
			t.Fatalf("reason %q for %+v", got.Reason, got)
		}
	})
}

func TestPodAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := drawDaemonSet(t)
		generation, err := util.GetTemplateGeneration(ds)
		if err != nil {
			t.Fatal(err)
		}
		template := util.CreatePodTemplate(ds.Spec.Template, generation, "h")
		template.Spec.Affinity = util.ReplaceDaemonSetPodNodeNameNodeAffinity(template.Spec.Affinity, "n1")
		want, err := controller.GetPodFromTemplate(&template, ds, metav1.NewControllerRef(ds, appsv1.SchemeGroupVersion.WithKind("DaemonSet")))
		if err != nil {
			t.Fatal(err)
		}
		want.Namespace = ds.Namespace
		before := ds.DeepCopy()
		got := NewPod(ds, "h", "n1", false)
		if !equality.Semantic.DeepEqual(got, want) {
			t.Fatalf("got %+v\nupstream %+v", got, want)
		}
		if !equality.Semantic.DeepEqual(before, ds) {
			t.Fatal("the DaemonSet itself was changed")
		}
		got.Spec.NodeName = ""
		name, err := util.GetTargetNodeName(got)
		if err != nil || TargetNode(got) != name {
			t.Fatalf("target %q, upstream %q %v", TargetNode(got), name, err)
		}
	})
}

func TestRevisionAsUpstream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := drawDaemonSet(t)
		if rapid.Bool().Draw(t, "collided") {
			n := rapid.Int32Range(0, 3).Draw(t, "collisions")
			ds.Status.CollisionCount = &n
		}
		if got, want := Hash(&ds.Spec.Template, ds.Status.CollisionCount), controller.ComputeHash(&ds.Spec.Template, ds.Status.CollisionCount); got != want {
			t.Fatalf("hash %s, upstream %s", got, want)
		}
		patch, err := Patch(ds)
		if err != nil {
			t.Fatal(err)
		}
		r := NewRevision(ds, patch, 1)
		if same, err := daemon.Match(ds, r); err != nil || !same {
			t.Fatalf("upstream does not know its revision again: %v\n%s", err, r.Data.Raw)
		}
		other := drawDaemonSet(t)
		theirs, err := daemon.Match(other, r)
		if err != nil {
			t.Fatal(err)
		}
		patch, err = Patch(other)
		if err != nil {
			t.Fatal(err)
		}
		if ours := Sort([]*appsv1.ControllerRevision{r}, patch).Current != nil; ours != theirs {
			t.Fatalf("matches %v, upstream %v", ours, theirs)
		}
	})
}
