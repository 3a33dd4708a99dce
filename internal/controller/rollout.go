package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/daemonset"
)

// setting is what a plan needs to know of the cluster.
func (c *daemons) setting() daemonset.Setting {
	return daemonset.Setting{
		Own: c.bind, UpdatesOnly: c.updatesOnly,
		Handler: func(class string) (string, bool) {
			rc, err := c.classes.Get(class)
			if err != nil {
				return "", false
			}
			return rc.Handler, true
		},
	}
}

// optionsChanged says whether annotations changed that a plan reads.
func optionsChanged(a, b map[string]string) bool {
	differ := func(a, b map[string]string) bool {
		for key, value := range a {
			read := strings.HasPrefix(key, daemonset.OptionPrefix) || key == daemonset.RolledBackKey || key == appsv1.DeprecatedTemplateGeneration
			if other, ok := b[key]; read && (!ok || other != value) {
				return true
			}
		}
		return false
	}
	return differ(a, b) || differ(b, a)
}

// unplan ends the plan; the next one takes over what it must remember.
func (s *set) unplan() {
	if s.fleet != nil {
		s.former = s.fleet
	}
	s.fleet, s.policy = nil, nil
}

// newPod makes the pod for a node, of the revision that it may have now.
func (s *set) newPod(node string, bind bool) *corev1.Pod {
	hash := s.fleet.Make(node, time.Now())
	if hash != s.hash {
		if r := s.history.Of(hash); r != nil {
			if old, err := daemonset.AsOf(s.ds, r); err == nil {
				return daemonset.NewPod(old, hash, node, bind)
			}
		}
	}
	return daemonset.NewPod(s.ds, s.hash, node, bind)
}

// report works out the conditions, has the set looked at again when they will
// change of themselves, and starts a rollback that is due.
func (c *daemons) report(ctx context.Context, s *set) []appsv1.DaemonSetCondition {
	now := time.Now()
	s.fleet.First(len(s.history.Old) == 0)
	r := s.fleet.Report(s.status.Conditions, now)
	if !r.Wake.IsZero() {
		c.after(r.Wake.Sub(now), item{kind: timeCame, set: s.name})
	}
	if r.Rollback {
		c.rollback(ctx, s, r.Progressing.Message)
	}
	// What waiting does not mend is told once, as an event, too.
	if d := r.Degraded; d.Reason == daemonset.NoRuntime && !slices.ContainsFunc(s.status.Conditions, func(c appsv1.DaemonSetCondition) bool {
		return c.Type == daemonset.Degraded && c.Reason == d.Reason
	}) {
		c.events.Event(s.ds, corev1.EventTypeWarning, d.Reason, d.Message)
	}
	return r.Conditions(s.status.Conditions, now)
}

// rollback brings back the template of the revision before the current one. It
// does so only if nobody has changed the DaemonSet meanwhile.
func (c *daemons) rollback(ctx context.Context, s *set, why string) {
	if s.rollingBack || len(s.history.Old) == 0 {
		return
	}
	to := s.history.Old[len(s.history.Old)-1]
	rolled := daemonset.Rolled{From: s.hash, To: to.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], Why: why}
	ds := s.ds
	patch, err := rollbackPatch(ds, to, rolled)
	if err != nil {
		c.log.Warn("cannot roll a daemonset back", "daemonset", s.name, "error", err)
		return
	}
	s.rollingBack = true
	c.write(ctx, s, func(ctx context.Context) func() {
		_, err := c.client.AppsV1().DaemonSets(ds.Namespace).Patch(ctx, ds.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		if err == nil {
			c.events.Event(ds, corev1.EventTypeWarning, "RolledBack", "Rolled back: "+rolled.String())
		}
		return func() {
			s.rollingBack = false
			if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
				// A conflict means that somebody changed it; the next look decides anew.
				if !apierrors.IsConflict(err) {
					c.log.Warn("cannot roll a daemonset back", "daemonset", s.name, "error", err)
				}
				c.after(time.Second, item{kind: timeCame, set: s.name})
			}
		}
	})
}

// rollbackPatch is the revision's own data, with what must not have changed and
// the note that it was a rollback.
func rollbackPatch(ds *appsv1.DaemonSet, to *appsv1.ControllerRevision, rolled daemonset.Rolled) ([]byte, error) {
	var patch map[string]any
	if err := json.Unmarshal(to.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("cannot read revision %s: %w", to.Name, err)
	}
	patch["metadata"] = map[string]any{
		"uid":             ds.UID,
		"resourceVersion": ds.ResourceVersion,
		"annotations":     map[string]string{daemonset.RolledBackKey: rolled.Value()},
	}
	return json.Marshal(patch)
}
