// Package daemonset decides what a DaemonSet does on each node, and when. It
// is pure: a node's state goes in, a verdict with reasons comes out; running
// tallies of the verdicts are the status and the update budget.
// docs/DAEMONSET.md is its specification.
package daemonset

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Policy is a DaemonSet compiled for planning: what does not depend on a node
// is worked out once.
type Policy struct {
	// Hash is the value of the label controller-revision-hash of up-to-date pods.
	Hash string
	// Selector selects the DaemonSet's pods.
	Selector labels.Selector

	generation  string // of the template, "" if the deprecated annotation is absent
	nodeName    string
	affinity    nodeaffinity.RequiredNodeAffinity
	tolerations []corev1.Toleration
	minReady    time.Duration
	rolling     bool
	surges      bool
	unavailable intstr.IntOrString
	surge       intstr.IntOrString
	options     Options
	wrong       []Wrong
	rolled      Rolled
	// gated: an update does not come to all nodes at any time.
	gated bool
	// skips: nodes that are NotReady before an update comes to them use no
	// budget.
	skips bool
	// handler is the runtime handler that the pod needs; only nodes that state
	// their handlers are asked, and only if asks is set.
	handler string
	asks    bool
	// updatesOnly: nothing but updates is planned.
	updatesOnly bool
}

// Setting is where a DaemonSet is planned.
type Setting struct {
	// Own: Legion's own server, with its defaults.
	Own bool
	// Handler returns the runtime handler of a RuntimeClass. Nil knows none.
	Handler func(class string) (handler string, known bool)
	// UpdatesOnly: pods are made and removed by the cluster's own controller.
	// The strategy is OnDelete, and updates are carried out by deleting pods.
	UpdatesOnly bool
}

// Drives says whether the updates of a DaemonSet are Legion's where only those
// are: its strategy is OnDelete and one of its annotations says how they go.
func Drives(ds *appsv1.DaemonSet) bool {
	return ds.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType && Asks(ds)
}

// Asks says whether a DaemonSet has an annotation that says how its updates go.
func Asks(ds *appsv1.DaemonSet) bool {
	for key := range ds.Annotations {
		if strings.HasPrefix(key, OptionPrefix) {
			return true
		}
	}
	return false
}

// Compile prepares a DaemonSet whose current revision has the given hash.
// Annotations that are wrong are no error: they halt its updates.
func Compile(ds *appsv1.DaemonSet, hash string, in Setting) (*Policy, error) {
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	if err != nil {
		return nil, fmt.Errorf("cannot use the selector of daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	spec := &ds.Spec.Template.Spec
	p := &Policy{
		Hash:        hash,
		Selector:    selector,
		generation:  templateGeneration(ds),
		nodeName:    spec.NodeName,
		affinity:    nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: *spec}),
		tolerations: Tolerations(spec),
		minReady:    time.Duration(ds.Spec.MinReadySeconds) * time.Second,
		rolling:     in.UpdatesOnly || ds.Spec.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType,
		unavailable: intstr.FromInt32(1),
		updatesOnly: in.UpdatesOnly,
	}
	if ru := ds.Spec.UpdateStrategy.RollingUpdate; p.rolling && ru != nil {
		if ru.MaxUnavailable != nil {
			p.unavailable = *ru.MaxUnavailable
		}
		if ru.MaxSurge != nil && !in.UpdatesOnly {
			p.surge = *ru.MaxSurge
		}
	}
	if _, err := scaled(p.unavailable, 1); err != nil {
		return nil, fmt.Errorf("cannot use maxUnavailable of daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	n, err := scaled(p.surge, 1)
	if err != nil {
		return nil, fmt.Errorf("cannot use maxSurge of daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	p.surges = n > 0
	if p.options, p.wrong = ParseOptions(ds.Annotations); len(p.wrong) > 0 {
		p.options = Options{NotReadyNodes: Count}
	}
	p.rolled = ParseRolled(ds.Annotations[RolledBackKey])
	o := &p.options
	p.gated = p.rolling && (len(p.wrong) > 0 || o.Paused || o.Partition != intstr.IntOrString{} || p.waves())
	p.skips = p.rolling && (o.NotReadyNodes == Skip || o.NotReadyNodes == "" && in.Own)
	p.needs(spec, in)
	return p, nil
}

// waves says whether there is more than one wave.
func (p *Policy) waves() bool { return p.options.Canary != nil || p.options.OrderBy != "" }

// Options returns what the annotations say, and those that are wrong.
func (p *Policy) Options() (Options, []Wrong) { return p.options, p.wrong }

// Rolling says whether updates are carried out, and not left to whoever deletes
// pods.
func (p *Policy) Rolling() bool { return p.rolling }

// needs works out which runtime handler the pod needs. A pod that names no
// class needs the default one, whose name is empty; nodes elsewhere may have it
// without stating it.
func (p *Policy) needs(spec *corev1.PodSpec, in Setting) {
	if spec.RuntimeClassName == nil || *spec.RuntimeClassName == "" {
		p.asks = in.Own
		return
	}
	if in.Handler != nil {
		p.handler, p.asks = in.Handler(*spec.RuntimeClassName)
	}
}

// templateGeneration is the old way of telling revisions apart; upstream still
// honours it.
func templateGeneration(ds *appsv1.DaemonSet) string {
	n, err := strconv.ParseInt(ds.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	if err != nil {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func scaled(v intstr.IntOrString, total int) (int, error) {
	return intstr.GetScaledValueFromIntOrPercent(&v, total, true)
}

// Budget returns how many nodes may be unavailable, and how many may run two
// pods, during an update of so many eligible nodes. Percentages are rounded
// up. Where both come out as nothing an update would never end: then one node
// may be unavailable.
func (p *Policy) Budget(desired int) (unavailable, surge int) {
	unavailable, _ = scaled(p.unavailable, desired)
	surge, _ = scaled(p.surge, desired)
	if desired > 0 && unavailable <= 0 && surge <= 0 {
		unavailable = 1
	}
	return unavailable, surge
}

// Eligibility is what a DaemonSet may do on a node.
type Eligibility struct {
	// Run: a pod should be made if there is none.
	Run bool
	// Continue: a pod that runs may stay.
	Continue bool
	// Reason says why Run or Continue is false.
	Reason string
	// Lacks says which runtime the node is without, where that alone keeps it
	// from being eligible.
	Lacks string
}

// Eligible judges one node. Its readiness and spec.unschedulable are not
// looked at, only the taints that come of them.
func (p *Policy) Eligible(node *corev1.Node) Eligibility {
	if p.nodeName != "" && p.nodeName != node.Name {
		return Eligibility{Reason: fmt.Sprintf("the template asks for node %s", p.nodeName)}
	}
	// An affinity that does not parse matches nothing.
	if ok, err := p.affinity.Match(node); err != nil {
		return Eligibility{Reason: fmt.Sprintf("the node affinity is not valid: %v", err)}
	} else if !ok {
		return Eligibility{Reason: "the node's labels do not match nodeSelector or required node affinity"}
	}
	if reason := p.lacks(node); reason != "" {
		return Eligibility{Reason: reason, Lacks: reason}
	}
	e := Eligibility{Run: true, Continue: true}
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule || p.tolerates(t) {
			continue
		}
		if e.Run || t.Effect == corev1.TaintEffectNoExecute {
			e.Reason = fmt.Sprintf("taint %s is not tolerated", t.ToString())
		}
		e.Run = false
		if t.Effect == corev1.TaintEffectNoExecute {
			e.Continue = false
			break
		}
	}
	return e
}

// lacks says which runtime handler the node is without, "" if it has the one
// that is needed, or states none.
func (p *Policy) lacks(node *corev1.Node) string {
	stated := node.Status.RuntimeHandlers
	if !p.asks || len(stated) == 0 {
		return ""
	}
	var names []string
	for i := range stated {
		if stated[i].Name == p.handler {
			return ""
		}
		names = append(names, stated[i].Name)
	}
	has := strings.Join(names, ", ")
	if p.handler == "" {
		return fmt.Sprintf("the node has no container runtime for a pod without runtimeClassName; its runtime handlers: %s; set runtimeClassName to run the pod by one of them", has)
	}
	return fmt.Sprintf("the node has no runtime handler %s; its runtime handlers: %s", p.handler, has)
}

func (p *Policy) tolerates(t *corev1.Taint) bool {
	for i := range p.tolerations {
		if p.tolerations[i].ToleratesTaint(logr.Discard(), t, false) {
			return true
		}
	}
	return false
}

// Tolerations returns the tolerations of a daemon pod: the template's, and
// those every daemon pod has.
func Tolerations(spec *corev1.PodSpec) []corev1.Toleration {
	all := slices.Clone(spec.Tolerations)
	add := func(key string, effect corev1.TaintEffect) {
		t := corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: effect}
		for i := range all {
			if all[i].MatchToleration(&t) {
				all[i] = t
				return
			}
		}
		all = append(all, t)
	}
	add(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
	add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
	add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	if spec.HostNetwork {
		add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
	}
	return all
}

// partitioned says whether some nodes keep their revision.
func (p *Policy) partitioned() bool {
	return p.rolling && p.options.Partition != intstr.IntOrString{}
}

// partition returns how many of so many nodes keep their revision. Percentages
// are rounded up.
func (p *Policy) partition(desired int) int {
	n, _ := scaled(p.options.Partition, desired)
	return n
}
