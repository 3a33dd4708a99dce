package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/daemonset"
)

// errStale says that the cache is behind; its next event brings us back.
var errStale = errors.New("the cache is behind")

// prepare gives the template its revision and adopts the pods that were left
// by an earlier DaemonSet. Only then is anything planned.
func (c *daemons) prepare(ctx context.Context, s *set) {
	if s.ds.DeletionTimestamp != nil || selectsAll(s.ds) {
		return
	}
	if c.updatesOnly {
		c.followHistory(ctx, s)
		return
	}
	if s.preparing {
		s.again = true
		return
	}
	s.preparing, s.again = true, false
	ds := s.ds
	var orphans []*corev1.Pod
	for _, pod := range c.indexed(byOrphan, s.name.Namespace) {
		if adoptable(s, pod) && !c.claims[pod.UID] {
			orphans = append(orphans, pod)
		}
	}
	owned := c.indexed(byOwner, string(ds.UID))
	c.write(ctx, s, func(ctx context.Context) func() {
		history, err := c.reviseHistory(ctx, ds, owned)
		version := ""
		if err == nil && ds.Status.ObservedGeneration == 0 {
			orphans, version, err = c.listOrphans(ctx, ds)
		}
		for _, pod := range orphans {
			if err != nil {
				break
			}
			var adopted *corev1.Pod
			if adopted, err = c.adopt(ctx, ds, pod); err == nil {
				version = adopted.ResourceVersion
			} else if apierrors.IsNotFound(err) {
				err = nil
			}
		}
		return func() { c.prepared(ctx, s, ds, history, version, err) }
	})
}

// listOrphans asks the API server for the pods a new DaemonSet may adopt: the
// cache may not show yet what was left behind a moment ago.
func (c *daemons) listOrphans(ctx context.Context, ds *appsv1.DaemonSet) ([]*corev1.Pod, string, error) {
	list, err := c.client.CoreV1().Pods(ds.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(ds.Spec.Selector)})
	if err != nil {
		return nil, "", fmt.Errorf("cannot look for pods that daemonset %s/%s may adopt: %w", ds.Namespace, ds.Name, err)
	}
	var orphans []*corev1.Pod
	for i := range list.Items {
		if p := &list.Items[i]; controllerOf(p) == nil && p.DeletionTimestamp == nil {
			orphans = append(orphans, p)
		}
	}
	if len(list.Items) == 0 {
		return nil, "", nil
	}
	return orphans, list.ResourceVersion, nil
}

func (c *daemons) prepared(ctx context.Context, s *set, ds *appsv1.DaemonSet, h daemonset.History, version string, err error) {
	s.preparing = false
	if c.sets[s.name] != s || ctx.Err() != nil {
		return
	}
	s.merge(h)
	if err != nil {
		if !errors.Is(err, errStale) {
			c.log.Warn("cannot prepare a daemonset", "daemonset", s.name, "error", err)
		}
		c.after(pause(s.trouble), item{kind: revisionChanged, set: s.name})
		s.trouble++
		return
	}
	s.trouble = 0
	if s.again || !sameTemplate(ds, s.ds) {
		c.prepare(ctx, s)
		return
	}
	if version != "" && !c.caughtUp(version) {
		// The adopted pods are not in the cache yet.
		c.after(5*time.Millisecond, item{kind: wrote, set: s.name, done: &done{func() {
			c.prepared(ctx, s, ds, h, version, nil)
		}}})
		s.preparing = true
		return
	}
	s.history = h
	hash := h.Current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	if s.fleet == nil || s.hash != hash {
		s.hash = hash
		c.rebuild(ctx, s)
	}
}

func sameTemplate(a, b *appsv1.DaemonSet) bool {
	return b.DeletionTimestamp == nil && equality.Semantic.DeepEqual(a.Spec.Template, b.Spec.Template) &&
		equality.Semantic.DeepEqual(a.Status.CollisionCount, b.Status.CollisionCount)
}

// reviseHistory makes the revisions agree with the DaemonSet: the current
// template has exactly one, with the highest number. It runs beside the loop.
func (c *daemons) reviseHistory(ctx context.Context, ds *appsv1.DaemonSet, owned []*corev1.Pod) (daemonset.History, error) {
	patch, err := daemonset.Patch(ds)
	if err != nil {
		return daemonset.History{}, err
	}
	own, err := c.claimRevisions(ctx, ds)
	if err != nil {
		return daemonset.History{}, err
	}
	h := daemonset.Sort(own, patch)
	api := c.client.AppsV1().ControllerRevisions(ds.Namespace)
	if h.Current == nil {
		if h.Current, err = c.createRevision(ctx, ds, patch, h.Number); err != nil {
			return h, err
		}
	}
	// Noted before the others go: a controller that starts anew knows it too.
	r := h.Current.DeepCopy()
	changed := daemonset.MarkMerged(r, h.Duplicates)
	if r.Revision < h.Number {
		changed = true
		r.Revision = h.Number
		daemonset.MarkCurrent(r, time.Now())
	}
	if changed {
		if h.Current, err = api.Update(ctx, r, metav1.UpdateOptions{}); err != nil {
			return h, fmt.Errorf("cannot number revision %s as %d: %w", r.Name, r.Revision, err)
		}
	}
	if len(h.Duplicates) > 0 {
		if err := c.mergeDuplicates(ctx, &h, owned); err != nil {
			return h, err
		}
	}
	return h, nil
}

// claimRevisions returns the revisions of the DaemonSet, adopting those it
// selects and releasing those it no longer does.
func (c *daemons) claimRevisions(ctx context.Context, ds *appsv1.DaemonSet) ([]*appsv1.ControllerRevision, error) {
	all, err := c.revisions.ControllerRevisions(ds.Namespace).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	api := c.client.AppsV1().ControllerRevisions(ds.Namespace)
	var own []*appsv1.ControllerRevision
	asked := false
	for _, r := range all {
		owner := controllerOf(r)
		matches := selects(ds, r.Labels)
		switch {
		case owner != nil && owner.UID != ds.UID, owner == nil && (!matches || r.DeletionTimestamp != nil):
			continue
		case owner != nil && !matches:
			_, err := api.Patch(ctx, r.Name, types.StrategicMergePatchType, disowning(ds, r.UID), metav1.PatchOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("cannot release revision %s: %w", r.Name, err)
			}
			continue
		case owner == nil:
			if !asked {
				if err := c.alive(ctx, ds); err != nil {
					return nil, err
				}
				asked = true
			}
			if r, err = api.Patch(ctx, r.Name, types.StrategicMergePatchType, adoption(ds, r.UID), metav1.PatchOptions{}); err != nil {
				if apierrors.IsNotFound(err) {
					continue
				}
				return nil, fmt.Errorf("cannot adopt a revision: %w", err)
			}
		}
		if _, ok := r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]; !ok {
			r = r.DeepCopy()
			r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = r.Name
			if r, err = api.Update(ctx, r, metav1.UpdateOptions{}); err != nil {
				return nil, fmt.Errorf("cannot label a revision: %w", err)
			}
		}
		own = append(own, r)
	}
	return own, nil
}

// alive asks the API server whether the DaemonSet is there and stays.
func (c *daemons) alive(ctx context.Context, ds *appsv1.DaemonSet) error {
	live, err := c.client.AppsV1().DaemonSets(ds.Namespace).Get(ctx, ds.Name, metav1.GetOptions{})
	switch {
	case err != nil:
		return fmt.Errorf("cannot look at daemonset %s/%s before adopting for it: %w", ds.Namespace, ds.Name, err)
	case live.UID != ds.UID, live.DeletionTimestamp != nil:
		return fmt.Errorf("daemonset %s/%s is being deleted: %w", ds.Namespace, ds.Name, errStale)
	}
	return nil
}

func (c *daemons) createRevision(ctx context.Context, ds *appsv1.DaemonSet, patch []byte, number int64) (*appsv1.ControllerRevision, error) {
	api := c.client.AppsV1().ControllerRevisions(ds.Namespace)
	want := daemonset.NewRevision(ds, patch, number)
	made, err := api.Create(ctx, want, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return nil, fmt.Errorf("cannot create revision %s: %w", want.Name, err)
		}
		return made, nil
	}
	there, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("cannot read revision %s: %w", want.Name, err)
	}
	if same := daemonset.Sort([]*appsv1.ControllerRevision{there}, patch); same.Current != nil {
		return there, nil
	}
	// Another template has the same hash. A counter goes into the hash to tell
	// them apart; it is raised only if the cached one is not behind.
	live, err := c.client.AppsV1().DaemonSets(ds.Namespace).Get(ctx, ds.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("cannot read daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	if live.UID == ds.UID && equality.Semantic.DeepEqual(live.Status.CollisionCount, ds.Status.CollisionCount) {
		n := int32(1)
		if live.Status.CollisionCount != nil {
			n += *live.Status.CollisionCount
		}
		live.Status.CollisionCount = &n
		if _, err := c.client.AppsV1().DaemonSets(ds.Namespace).UpdateStatus(ctx, live, metav1.UpdateOptions{}); err != nil {
			return nil, fmt.Errorf("cannot raise the collision count of daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
		}
	}
	return nil, errStale
}

// mergeDuplicates gives the pods of duplicate revisions to the current one.
func (c *daemons) mergeDuplicates(ctx context.Context, h *daemonset.History, owned []*corev1.Pod) error {
	patch := labelling(h.Current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey])
	theirs := map[string]bool{}
	for _, d := range h.Duplicates {
		theirs[d.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	for _, pod := range owned {
		if !theirs[pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] {
			continue
		}
		_, err := c.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("cannot label pod %s with its revision: %w", pod.Name, err)
		}
	}
	for _, d := range h.Duplicates {
		if err := c.deleteRevision(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// merge remembers which revisions gave way to the current one.
func (s *set) merge(h daemonset.History) {
	if h.Current == nil {
		return
	}
	hash := h.Current.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	for _, merged := range daemonset.Merged(h.Current) {
		s.merged[merged] = hash
	}
	delete(s.merged, hash)
}

// relabel gives a pod to the revision that its own, which it was made with
// while they were merged, gave way to.
func (c *daemons) relabel(ctx context.Context, s *set, pod *corev1.Pod, hash string) {
	if c.claims[pod.UID] {
		return
	}
	c.claims[pod.UID] = true
	patch := labelling(hash)
	c.write(ctx, s, func(ctx context.Context) func() {
		_, err := c.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return func() {
			delete(c.claims, pod.UID)
			if err != nil && !apierrors.IsNotFound(err) {
				c.log.Warn("cannot label a pod with its revision", "daemonset", s.name, "pod", pod.Name, "error", err)
				c.after(time.Second, item{kind: pairChanged, set: s.name, node: targetNode(pod)})
			}
		}
	})
}

func labelling(hash string) []byte {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"labels": map[string]string{appsv1.DefaultDaemonSetUniqueLabelKey: hash},
	}})
	if err != nil {
		panic(err) // plain maps
	}
	return patch
}

func (c *daemons) deleteRevision(ctx context.Context, r *appsv1.ControllerRevision) error {
	err := c.client.AppsV1().ControllerRevisions(r.Namespace).Delete(ctx, r.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &r.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot delete revision %s: %w", r.Name, err)
	}
	return nil
}

// cleanHistory deletes revisions over the limit that no pod uses.
func (c *daemons) cleanHistory(ctx context.Context, s *set) {
	limit := 10
	if l := s.ds.Spec.RevisionHistoryLimit; l != nil {
		limit = int(*l)
	}
	if c.updatesOnly || s.cleaning || len(s.history.Old) <= limit {
		return
	}
	expired := s.history.Expired(limit, s.fleet.Uses)
	if len(expired) == 0 {
		return
	}
	s.cleaning = true
	c.write(ctx, s, func(ctx context.Context) func() {
		var err error
		for _, r := range expired {
			if err = c.deleteRevision(ctx, r); err != nil {
				break
			}
		}
		return func() {
			s.cleaning = false
			if err != nil && ctx.Err() == nil {
				c.log.Warn("cannot clean up revisions", "daemonset", s.name, "error", err)
				c.after(time.Second, item{kind: revisionChanged, set: s.name})
				return
			}
			gone := map[types.UID]bool{}
			for _, r := range expired {
				gone[r.UID] = true
			}
			var left []*appsv1.ControllerRevision
			for _, r := range s.history.Old {
				if !gone[r.UID] {
					left = append(left, r)
				}
			}
			s.history.Old = left
		}
	})
}
