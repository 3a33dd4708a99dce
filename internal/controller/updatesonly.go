package controller

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"legion.dev/legion/internal/daemonset"
)

// What differs where only updates are Legion's: the cluster's own controller
// keeps pods, revisions and the numbers of the status; Legion deletes outdated
// pods and writes the conditions.

// What a Lease says of the controller that holds it, so that others can tell
// whose the updates of a DaemonSet with the strategy OnDelete are.
const (
	ModeLabel       = "legion.dev/mode"
	ModeAll         = "all"
	ModeUpdatesOnly = "updates-only"
)

// followHistory takes the revisions as the cluster's own controller keeps them.
func (c *daemons) followHistory(ctx context.Context, s *set) {
	all, err := c.revisions.ControllerRevisions(s.name.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	var own []*appsv1.ControllerRevision
	for _, r := range all {
		if owner := controllerOf(r); owner != nil && owner.UID == s.ds.UID {
			own = append(own, r)
		}
	}
	patch, err := daemonset.Patch(s.ds)
	if err != nil {
		c.log.Warn("cannot read a daemonset", "daemonset", s.name, "error", err)
		return
	}
	s.history = daemonset.Sort(own, patch)
	hash := ""
	if r := s.history.Current; r != nil {
		hash = r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	}
	switch {
	case hash == "":
		// Nothing is planned until the template has its revision; the revision's
		// own event brings us back.
		s.hash = ""
		s.unplan()
	case s.fleet == nil || s.hash != hash:
		s.hash = hash
		c.rebuild(ctx, s)
	}
}

// leave lets a DaemonSet be whose updates are not Legion's, and takes back what
// was said of it.
func (c *daemons) leave(ctx context.Context, s *set, before *appsv1.DaemonSet) {
	s.hash = ""
	s.unplan()
	if asks := daemonset.Asks(s.ds); asks && (s.ds == before || before.Generation != s.ds.Generation || !daemonset.Asks(before)) {
		c.events.Event(s.ds, corev1.EventTypeWarning, "NotDriven",
			"The annotations "+daemonset.OptionPrefix+"* do nothing here: only the updates of DaemonSets with updateStrategy OnDelete are Legion's")
	}
	c.takeBack(ctx, s)
}

// takeBack removes the conditions of a DaemonSet whose updates are not Legion's;
// where they are being written just now, once that has ended.
func (c *daemons) takeBack(ctx context.Context, s *set) {
	if without := daemonset.WithoutReport(s.status.Conditions); !s.writing && len(without) != len(s.status.Conditions) {
		c.patchStatus(ctx, s, map[string]any{"conditions": without})
	}
}
