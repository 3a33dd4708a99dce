package daemonset

import (
	"cmp"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// generationLabel is the deprecated label that carries the template's
// generation.
const generationLabel = "pod-template-generation"

// Pod is what a plan needs to know of a daemon pod.
type Pod struct {
	Name    string
	UID     types.UID
	Created time.Time
	// Hash is the revision the pod was made from.
	Hash       string
	Generation string
	Phase      corev1.PodPhase
	// Bound: the pod has a node, not only the wish for one.
	Bound bool
	// Deleting: somebody has asked for its deletion.
	Deleting bool
	// Asked: it was us, and the cluster does not show it yet. The pod may run
	// on for a moment.
	Asked bool
	Ready bool
	// ReadySince is when Ready last changed.
	ReadySince time.Time
	// Trouble says in a word or two what keeps the pod from being ready, ""
	// while it may just be starting.
	Trouble string
}

// Observe takes from a pod what a plan needs.
func Observe(pod *corev1.Pod) Pod {
	o := Pod{
		Name:       pod.Name,
		UID:        pod.UID,
		Created:    pod.CreationTimestamp.Time,
		Hash:       pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey],
		Generation: pod.Labels[generationLabel],
		Phase:      pod.Status.Phase,
		Bound:      pod.Spec.NodeName != "",
		Deleting:   pod.DeletionTimestamp != nil,
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			o.Ready, o.ReadySince = c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	if !o.Ready && !o.Deleting {
		o.Trouble = trouble(pod)
	}
	return o
}

func (o *Pod) ended() bool { return o.Phase == corev1.PodFailed || o.Phase == corev1.PodSucceeded }

// TargetNode returns the node a daemon pod is on or pinned to, "" if neither.
func TargetNode(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key != metav1.ObjectNameField || f.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			if len(f.Values) != 1 {
				return ""
			}
			return f.Values[0]
		}
	}
	return ""
}

// NewPod makes the pod of a DaemonSet for one node, pinned to it as upstream
// does; bind also sets spec.nodeName, where no scheduler will.
func NewPod(ds *appsv1.DaemonSet, hash, node string, bind bool) *corev1.Pod {
	t := ds.Spec.Template.DeepCopy()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:    ds.Namespace,
			GenerateName: ds.Name + "-",
			Labels:       t.Labels,
			Annotations:  t.Annotations,
			Finalizers:   t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{
				*metav1.NewControllerRef(ds, appsv1.SchemeGroupVersion.WithKind("DaemonSet")),
			},
		},
		Spec: t.Spec,
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	} else {
		pod.Labels = maps.Clone(pod.Labels)
	}
	if g := templateGeneration(ds); g != "" {
		pod.Labels[generationLabel] = g
	}
	if hash != "" {
		pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	}
	pod.Spec.Tolerations = Tolerations(&t.Spec)
	pod.Spec.Affinity = pinned(pod.Spec.Affinity, node)
	if bind {
		pod.Spec.NodeName = node
	}
	return pod
}

// pinned replaces the required node affinity by the one node; what it asked
// for has been checked by then.
func pinned(a *corev1.Affinity, node string) *corev1.Affinity {
	if a == nil {
		a = &corev1.Affinity{}
	}
	if a.NodeAffinity == nil {
		a.NodeAffinity = &corev1.NodeAffinity{}
	}
	a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchFields: []corev1.NodeSelectorRequirement{{
				Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
			}},
		}},
	}
	return a
}

// oldestFirst orders pods as upstream does: bound ones first, then by age,
// then by name.
func oldestFirst(pods []Pod) {
	slices.SortFunc(pods, func(a, b Pod) int {
		if a.Bound != b.Bound {
			if a.Bound {
				return -1
			}
			return 1
		}
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
}
