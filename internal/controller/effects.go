package controller

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/storage/names"

	"legion.dev/legion/internal/daemonset"
)

// Pauses after failed writes: doubled with each one in a row.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
	// maxNames is how many names of a new pod may be taken, as with names that the
	// API server makes (k8s.io/apiserver, maxNameGenerationCreateAttempts).
	maxNames = 8
)

func pause(failures int) time.Duration {
	return min(firstPause<<min(failures, 12), maxPause)
}

// pump makes as many of the waiting pods as the pace allows.
func (c *daemons) pump(ctx context.Context, s *set) {
	p := &s.creates
	if s.rebuilding {
		return
	}
	if wait := time.Until(p.pause); len(p.waiting) > 0 && wait > 0 {
		c.after(wait, item{kind: mayCreate, set: s.name})
		return
	}
	for len(p.waiting) > 0 && p.sending < p.window {
		node := p.waiting[0]
		p.waiting = p.waiting[1:]
		f := s.flights[node]
		if f == nil || f.version != "" {
			continue
		}
		if !c.wanted(ctx, s, node) {
			c.land(ctx, s, node)
			continue
		}
		p.sending++
		c.createPod(ctx, s, f)
	}
}

// wanted asks again before a pod is made that had to wait.
func (c *daemons) wanted(ctx context.Context, s *set, node string) bool {
	if s.fleet == nil {
		return false
	}
	n := c.observe(ctx, s, node)
	n.Creating = len(n.Pods) == 0 && c.claimable(s, node)
	v := s.policy.Decide(n, time.Now())
	if v.Candidate != nil && v.Candidate.Create() && s.fleet.Lets(node, time.Now()) {
		return true
	}
	for _, a := range v.Actions {
		if a.Create() {
			return true
		}
	}
	return false
}

// land ends a flight and judges its node anew.
func (c *daemons) land(ctx context.Context, s *set, node string) {
	delete(s.flights, node)
	c.unassume(s, node)
	c.touch(ctx, s, node)
}

func (c *daemons) createPod(ctx context.Context, s *set, f *flight) {
	ds, node := s.ds, f.action.Node
	pod := s.newPod(node, c.bind)
	// Named here, so that what may have been carried out is not done once more.
	fresh := s.unsure[node] == ""
	if pod.Name = s.unsure[node]; fresh {
		pod.Name = names.SimpleNameGenerator.GenerateName(pod.GenerateName)
	}
	c.tryWrite(ctx, s, func(ctx context.Context) (func(), error) {
		made, err := c.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
		for again := 1; apierrors.IsAlreadyExists(err); again++ {
			if made, err = c.madeBefore(ctx, ds, pod.Name, node, err); !apierrors.IsAlreadyExists(err) || !fresh || again == maxNames {
				break
			}
			// One in millions has the name, and among thousands somebody does.
			pod.Name = names.SimpleNameGenerator.GenerateName(pod.GenerateName)
			made, err = c.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
		}
		switch {
		case err == nil:
			c.events.Eventf(ds, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", made.Name)
		case ctx.Err() == nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			c.events.Eventf(ds, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return func() {
			if c.sets[s.name] == s {
				delete(s.unsure, node)
				if uncertain(err) {
					s.unsure[node] = pod.Name
				}
				c.created(ctx, s, f, made, err)
			}
		}, err
	})
}

// madeBefore returns the pod that has the name already, if it is ours and the
// answer to its creation was lost; else the error.
func (c *daemons) madeBefore(ctx context.Context, ds *appsv1.DaemonSet, name, node string, exists error) (*corev1.Pod, error) {
	pod, err := c.client.CoreV1().Pods(ds.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case uncertain(err):
		return nil, err
	case err != nil || pod.DeletionTimestamp != nil || targetNode(pod) != node || !metav1.IsControlledBy(pod, ds):
		return nil, exists
	}
	return pod, nil
}

// ask asks the API server whether a pod was made, whose creation failed and may
// have been carried out. Until it is known it counts as being made.
func (c *daemons) ask(ctx context.Context, s *set, f *flight) {
	node := f.action.Node
	name := s.unsure[node]
	c.tryWrite(ctx, s, func(ctx context.Context) (func(), error) {
		pod, err := c.client.CoreV1().Pods(s.name.Namespace).Get(ctx, name, metav1.GetOptions{})
		return func() {
			switch {
			case c.sets[s.name] != s || s.flights[node] != f:
			case err == nil:
				f.version = pod.ResourceVersion
				c.touch(ctx, s, node)
			case apierrors.IsNotFound(err):
				c.land(ctx, s, node)
				c.pump(ctx, s)
			default:
				c.later(s, func() { c.ask(ctx, s, f) })
			}
		}, err
	})
}

// uncertain says whether a write that failed may have been carried out.
func uncertain(err error) bool {
	if err == nil {
		return false
	}
	switch apierrors.ReasonForError(err) {
	case metav1.StatusReasonUnknown, metav1.StatusReasonInternalError, metav1.StatusReasonTimeout,
		metav1.StatusReasonServerTimeout, metav1.StatusReasonServiceUnavailable:
		return true
	}
	return false
}

func (c *daemons) created(ctx context.Context, s *set, f *flight, made *corev1.Pod, err error) {
	p := &s.creates
	p.sending--
	if err != nil {
		c.log.Warn("cannot create a daemon pod", "daemonset", s.name, "node", f.action.Node, "error", err)
		// One failure halts the pass: the rest waits, and starts with one again.
		p.pause = time.Now().Add(pause(p.errors))
		p.errors++
		p.window = 1
		if s.unsure[f.action.Node] != "" {
			c.later(s, func() { c.ask(ctx, s, f) })
		} else {
			c.land(ctx, s, f.action.Node)
		}
	} else {
		p.errors = 0
		p.window++
		f.version = made.ResourceVersion
		c.touch(ctx, s, f.action.Node)
	}
	c.pump(ctx, s)
}

func (c *daemons) deletePod(ctx context.Context, s *set, a daemonset.Action) {
	if s.doomed[a.Node] == nil {
		s.doomed[a.Node] = map[types.UID]bool{}
	}
	s.doomed[a.Node][a.UID] = true
	ds := s.ds
	switch a.Cause {
	case daemonset.Failed:
		s.failures[a.Node] = s.failures[a.Node].Next(time.Now())
		c.events.Eventf(ds, corev1.EventTypeWarning, "FailedDaemonPod",
			"Found failed daemon pod %s/%s on node %s, will try to kill it", ds.Namespace, a.Pod, a.Node)
	case daemonset.Succeeded:
		c.events.Eventf(ds, corev1.EventTypeNormal, "SucceededDaemonPod",
			"Found succeeded daemon pod %s/%s on node %s, will try to delete it", ds.Namespace, a.Pod, a.Node)
	}
	c.tryWrite(ctx, s, func(ctx context.Context) (func(), error) {
		err := c.client.CoreV1().Pods(ds.Namespace).Delete(ctx, a.Pod, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &a.UID},
		})
		switch {
		case err == nil:
			c.events.Eventf(ds, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v (%s)", a.Pod, a.Reason)
			return nil, nil
		case apierrors.IsNotFound(err) || ctx.Err() != nil:
			// The cache will show it.
			return nil, nil
		case apierrors.IsConflict(err):
			// A pod of another UID is not meant, or somebody wrote to it meanwhile.
			return func() { c.later(s, func() { c.stays(ctx, s, a) }) }, err
		}
		c.events.Eventf(ds, corev1.EventTypeWarning, "FailedDelete", "Error deleting pod %v: %v", a.Pod, err)
		return func() {
			c.log.Warn("cannot delete a daemon pod", "daemonset", s.name, "pod", a.Pod, "reason", a.Reason, "error", err)
			// Judged anew after a pause; until then it still counts as going.
			c.later(s, func() {
				if uncertain(err) {
					c.stays(ctx, s, a)
				} else {
					c.spare(ctx, s, a)
				}
			})
		}, err
	})
}

// later does something in the loop after a pause.
func (c *daemons) later(s *set, apply func()) {
	c.after(time.Second, item{kind: wrote, set: s.name, done: &done{apply}})
}

// spare judges anew a node whose pod was not deleted after all.
func (c *daemons) spare(ctx context.Context, s *set, a daemonset.Action) {
	delete(s.doomed[a.Node], a.UID)
	if c.sets[s.name] == s {
		c.touch(ctx, s, a.Node)
	}
}

// stays asks the API server whether a pod is being deleted, whose deletion
// failed and may have been carried out: the cache may be behind.
func (c *daemons) stays(ctx context.Context, s *set, a daemonset.Action) {
	c.tryWrite(ctx, s, func(ctx context.Context) (func(), error) {
		pod, err := c.client.CoreV1().Pods(s.name.Namespace).Get(ctx, a.Pod, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err), err == nil && (pod.UID != a.UID || pod.DeletionTimestamp != nil):
			return nil, nil
		case err != nil:
			return func() { c.later(s, func() { c.stays(ctx, s, a) }) }, err
		}
		return func() { c.spare(ctx, s, a) }, nil
	})
}

// writeStatus brings the status up to the tallies, one write at a time.
func (c *daemons) writeStatus(ctx context.Context, s *set, conditions []appsv1.DaemonSetCondition) {
	want := s.status
	if !c.updatesOnly {
		want = s.fleet.Status(s.status, s.ds.Generation)
	}
	want.Conditions = conditions
	if s.writing || equality.Semantic.DeepEqual(want, s.status) {
		return
	}
	status := map[string]any{"conditions": want.Conditions}
	if !c.updatesOnly {
		maps.Copy(status, map[string]any{
			"desiredNumberScheduled": want.DesiredNumberScheduled,
			"currentNumberScheduled": want.CurrentNumberScheduled,
			"numberMisscheduled":     want.NumberMisscheduled,
			"numberReady":            want.NumberReady,
			"updatedNumberScheduled": want.UpdatedNumberScheduled,
			"numberAvailable":        want.NumberAvailable,
			"numberUnavailable":      want.NumberUnavailable,
			"observedGeneration":     want.ObservedGeneration,
		})
	}
	c.patchStatus(ctx, s, status)
}

func (c *daemons) patchStatus(ctx context.Context, s *set, status map[string]any) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": s.ds.UID}, "status": status})
	if err != nil {
		panic(err) // numbers and strings
	}
	s.writing = true
	c.write(ctx, s, func(ctx context.Context) func() {
		ds, err := c.client.AppsV1().DaemonSets(s.name.Namespace).
			Patch(ctx, s.name.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
		return func() {
			s.writing = false
			switch {
			case err == nil:
				s.status, s.version = ds.Status, ds.ResourceVersion
				if c.updatesOnly && s.ds.DeletionTimestamp == nil && !daemonset.Drives(s.ds) {
					c.takeBack(ctx, s)
				}
			case !apierrors.IsNotFound(err) && ctx.Err() == nil:
				c.log.Warn("cannot write the status of a daemonset", "daemonset", s.name, "error", err)
				c.after(time.Second, item{kind: setChanged, set: s.name})
			}
		}
	})
}

// orphan has a pod without a controller adopted by the DaemonSet that selects it.
func (c *daemons) orphan(ctx context.Context, name types.NamespacedName) {
	obj, ok, _ := c.pods.GetByKey(name.String())
	if !ok {
		return
	}
	pod := obj.(*corev1.Pod)
	for _, s := range c.sets {
		if s.name.Namespace == name.Namespace && s.ds.DeletionTimestamp == nil && adoptable(s, pod) && !c.claims[pod.UID] {
			c.claims[pod.UID] = true
			ds := s.ds
			c.write(ctx, s, func(ctx context.Context) func() {
				_, err := c.adopt(ctx, ds, pod)
				return func() {
					delete(c.claims, pod.UID)
					if err != nil {
						if !errors.Is(err, errStale) {
							c.log.Warn("cannot adopt a pod", "daemonset", s.name, "pod", pod.Name, "error", err)
						}
						c.after(time.Second, item{kind: orphanSeen, set: name})
					}
				}
			})
			return
		}
	}
}

func adoptable(s *set, pod *corev1.Pod) bool {
	if controllerOf(pod) != nil || pod.DeletionTimestamp != nil {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(s.ds.Spec.Selector)
	return err == nil && !selector.Empty() && selector.Matches(podLabels(pod))
}

func podLabels(pod *corev1.Pod) labels.Set { return pod.Labels }

// adopt makes a pod the DaemonSet's own, after a look at the DaemonSet itself:
// the cache may not know yet that it is being deleted.
func (c *daemons) adopt(ctx context.Context, ds *appsv1.DaemonSet, pod *corev1.Pod) (*corev1.Pod, error) {
	if err := c.alive(ctx, ds); err != nil {
		return nil, err
	}
	return c.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, adoption(ds, pod.UID), metav1.PatchOptions{})
}

func adoption(ds *appsv1.DaemonSet, uid types.UID) []byte {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             uid,
		"ownerReferences": []metav1.OwnerReference{*metav1.NewControllerRef(ds, daemonSetKind)},
	}})
	if err != nil {
		panic(err) // plain structs
	}
	return patch
}

// release gives up a pod whose labels the selector no longer matches.
func (c *daemons) release(ctx context.Context, s *set, pod *corev1.Pod) {
	if c.claims[pod.UID] {
		return
	}
	c.claims[pod.UID] = true
	patch := disowning(s.ds, pod.UID)
	c.write(ctx, s, func(ctx context.Context) func() {
		_, err := c.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		return func() {
			delete(c.claims, pod.UID)
			if err != nil && !apierrors.IsNotFound(err) {
				c.log.Warn("cannot release a pod", "daemonset", s.name, "pod", pod.Name, "error", err)
				c.after(time.Second, item{kind: pairChanged, set: s.name, node: targetNode(pod)})
			}
		}
	})
}

func disowning(ds *appsv1.DaemonSet, uid types.UID) []byte {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":             uid,
		"ownerReferences": []map[string]any{{"$patch": "delete", "uid": ds.UID}},
	}})
	if err != nil {
		panic(err) // plain maps
	}
	return patch
}
