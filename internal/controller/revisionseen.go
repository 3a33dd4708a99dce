package controller

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// revisionHandler queues the DaemonSets that a revision concerns.
func (c *daemons) revisionHandler() cache.ResourceEventHandler {
	queue := func(r *appsv1.ControllerRevision, kind kind) {
		for _, set := range c.setsOfRevision(r) {
			c.queue.Add(item{kind: kind, set: set})
		}
	}
	changed := each(func(_, r *appsv1.ControllerRevision) { queue(r, revisionChanged) })
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			r, ok := obj.(*appsv1.ControllerRevision)
			switch {
			case !ok:
			case owningDaemonSet(r) == nil || c.updatesOnly:
				queue(r, revisionChanged)
			default:
				queue(r, revisionMade)
			}
		},
		UpdateFunc: changed.OnUpdate,
		DeleteFunc: changed.OnDelete,
	}
}

// readHistory looks at the revisions of a DaemonSet that has a new one with the
// next news of its nodes and pods, as upstream does: who makes a duplicate of the
// current revision may go on with it until then.
func (c *daemons) readHistory(ctx context.Context, s *set) {
	if s.unread {
		s.unread = false
		c.prepare(ctx, s)
	}
}

// setsOfRevision returns the DaemonSets a revision may concern.
func (c *daemons) setsOfRevision(r *appsv1.ControllerRevision) []types.NamespacedName {
	if owner := owningDaemonSet(r); owner != nil {
		return []types.NamespacedName{{Namespace: r.Namespace, Name: owner.Name}}
	}
	if controllerOf(r) != nil {
		return nil
	}
	sets, _ := c.dsLister.DaemonSets(r.Namespace).List(labels.Everything())
	var names []types.NamespacedName
	for _, ds := range sets {
		if selects(ds, r.Labels) {
			names = append(names, nameOf(ds))
		}
	}
	return names
}

func selects(ds *appsv1.DaemonSet, set labels.Set) bool {
	selector, err := metav1.LabelSelectorAsSelector(ds.Spec.Selector)
	return err == nil && !selector.Empty() && selector.Matches(set)
}

// selectsAll is what admission refuses; it must not be acted on elsewhere.
func selectsAll(ds *appsv1.DaemonSet) bool {
	return ds.Spec.Selector == nil || len(ds.Spec.Selector.MatchLabels)+len(ds.Spec.Selector.MatchExpressions) == 0
}
