package controller

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"legion.dev/legion/internal/daemonset"
	"legion.dev/legion/internal/placement"
)

// set is one DaemonSet as the loop knows it.
type set struct {
	name types.NamespacedName
	ds   *appsv1.DaemonSet

	// hash, policy and fleet are unset while nothing may be planned.
	hash    string
	history daemonset.History
	policy  *daemonset.Policy
	fleet   *daemonset.Fleet
	// former is the last plan, while there is none.
	former *daemonset.Fleet
	// rebuilding: not all nodes are in the plan yet.
	rebuilding bool
	// merged are the hashes of revisions that gave way to an equal one, and its
	// hash: a pod may have been under way with one of them.
	merged map[string]string
	// rollingBack: the template of an earlier revision is being brought back.
	rollingBack bool

	// preparing: revisions and adoptions are being written; again: look once
	// more after that.
	preparing, again bool
	// unread: it has a new revision, which nobody has looked at.
	unread   bool
	trouble  int // failed preparations in a row
	cleaning bool

	// flights are pods being made, by node, until the cache shows them.
	flights map[string]*flight
	// doomed are pods whose deletion was asked for and is not seen yet.
	doomed   map[string]map[types.UID]bool
	failures map[string]daemonset.Failures
	// unsure are the names of pods that may have been made though an error was
	// the answer, by node.
	unsure map[string]string
	// unfit says why no pod fits, by node.
	unfit map[string]string

	creates creates

	status  appsv1.DaemonSetStatus // as last read or written
	version string                 // the resource version of our last write of it
	writing bool
}

// flight is a pod being made.
type flight struct {
	action daemonset.Action
	// version of the pod once it was made.
	version string
}

// creates paces the making of pods: one, and one more with each success, so
// that what fails for all fails once.
type creates struct {
	waiting []string // nodes
	sending int
	window  int
	errors  int
	pause   time.Time
}

// maxSteps is how many steps of an update are planned before the nodes are
// judged anew. How many pods are made at a time is the gate's business.
const maxSteps = 250

func newSet(name types.NamespacedName, ds *appsv1.DaemonSet) *set {
	return &set{
		name:     name,
		ds:       ds,
		flights:  map[string]*flight{},
		doomed:   map[string]map[types.UID]bool{},
		failures: map[string]daemonset.Failures{},
		unsure:   map[string]string{},
		unfit:    map[string]string{},
		merged:   map[string]string{},
		creates:  creates{window: 1},
		status:   ds.Status,
	}
}

// seen takes over the status of a cached DaemonSet unless we wrote a newer one.
func (s *set) seen(ds *appsv1.DaemonSet) {
	if s.writing {
		return
	}
	if s.version != "" {
		if n, err := resourceversion.CompareResourceVersion(ds.ResourceVersion, s.version); err == nil && n < 0 {
			return
		}
	}
	s.status = ds.Status
}

// touch judges one node of one set and starts what is due on it.
func (c *daemons) touch(ctx context.Context, s *set, node string) {
	if s.fleet == nil {
		return
	}
	now := time.Now()
	v := s.fleet.Set(c.observe(ctx, s, node), now)
	if len(v.Actions) > 0 {
		for _, a := range v.Actions {
			c.start(ctx, s, a)
		}
		v = s.fleet.Set(c.observe(ctx, s, node), now)
	}
	if !v.Wake.IsZero() {
		c.after(v.Wake.Sub(now), item{kind: pairChanged, set: s.name, node: node})
	}
}

// observe gathers what is known of a node, our own writes included.
func (c *daemons) observe(ctx context.Context, s *set, node string) daemonset.Node {
	n := daemonset.Node{Name: node, Failures: s.failures[node]}
	obj, err := c.nodes.Get(node)
	if n.Exists = err == nil; n.Exists {
		n.Eligibility = s.policy.Eligible(obj)
		n.Wave, n.NotReady = s.policy.WaveOf(obj), daemonset.NotReady(obj)
	} else {
		n.Reason = "the node is gone"
	}
	doomed := s.doomed[node]
	var still map[types.UID]bool
	for _, pod := range c.indexed(byPair, pairIndex(s.ds.UID, node)) {
		o := daemonset.Observe(pod)
		if doomed[o.UID] && !o.Deleting {
			o.Deleting, o.Asked = true, true
			if still == nil {
				still = map[types.UID]bool{}
			}
			still[o.UID] = true
		}
		if !o.Deleting && !s.policy.Selector.Matches(podLabels(pod)) {
			if !c.updatesOnly {
				c.release(ctx, s, pod)
			}
			continue
		}
		if to := s.merged[o.Hash]; to != "" && !o.Deleting {
			c.relabel(ctx, s, pod, to)
		}
		n.Pods = append(n.Pods, o)
	}
	if still == nil {
		delete(s.doomed, node)
	} else {
		s.doomed[node] = still
	}
	n.Creating = c.flying(s, node) || len(n.Pods) == 0 && c.claimable(s, node)
	if _, cramped := s.unfit[node]; cramped {
		if n.Unfit = c.unfit(s, node, obj); n.Unfit == "" {
			c.roomFound(s, node)
		} else {
			s.unfit[node] = n.Unfit
		}
	}
	return n
}

// claimable says whether there is a pod on the node that nobody owns and that is
// to be adopted, unless the DaemonSet turns out to be on its way out. No other
// one is made beside it before that is known.
func (c *daemons) claimable(s *set, node string) bool {
	if c.updatesOnly {
		return false
	}
	for _, pod := range c.indexed(byOrphan, s.name.Namespace+"/"+node) {
		if adoptable(s, pod) {
			// The adoption's own event brings us back, unless the pod goes before.
			c.after(time.Second, item{kind: pairChanged, set: s.name, node: node})
			return true
		}
	}
	return false
}

// flying says whether a pod is being made on the node and not in the cache yet.
func (c *daemons) flying(s *set, node string) bool {
	f := s.flights[node]
	if f == nil {
		return false
	}
	if f.version == "" {
		return true
	}
	if !c.caughtUp(f.version) {
		// The pod's own event brings us back. If the watch broke meanwhile and
		// the pod has come and gone, this does.
		c.after(time.Second, item{kind: pairChanged, set: s.name, node: node})
		return true
	}
	delete(s.flights, node)
	c.unassume(s, node)
	return false
}

// settle takes the next steps of an update and writes the status.
func (c *daemons) settle(ctx context.Context, s *set) {
	if s.fleet == nil {
		return
	}
	for {
		steps := s.fleet.Rollout(maxSteps, time.Now())
		if len(steps) == 0 {
			break
		}
		for _, a := range steps {
			c.start(ctx, s, a)
			c.touch(ctx, s, a.Node)
		}
	}
	c.writeStatus(ctx, s, c.report(ctx, s))
	c.cleanHistory(ctx, s)
}

// start carries out one action.
func (c *daemons) start(ctx context.Context, s *set, a daemonset.Action) {
	if !a.Create() {
		c.deletePod(ctx, s, a)
		return
	}
	node, err := c.nodes.Get(a.Node)
	if err != nil || s.flights[a.Node] != nil {
		return
	}
	if reason := c.unfit(s, a.Node, node); reason != "" {
		s.unfit[a.Node] = reason
		if c.cramped[a.Node] == nil {
			c.cramped[a.Node] = map[*set]bool{}
		}
		c.cramped[a.Node][s] = true
		c.events.Eventf(s.ds, corev1.EventTypeWarning, "FailedPlacement",
			"No pod is made on node %s, it does not fit: %s", a.Node, reason)
		return
	}
	s.flights[a.Node] = &flight{action: a}
	if c.bind {
		if c.assumed[a.Node] == nil {
			c.assumed[a.Node] = map[*set]placement.Use{}
		}
		c.assumed[a.Node][s] = c.useOf(s)
	}
	s.creates.waiting = append(s.creates.waiting, a.Node)
	c.pump(ctx, s)
}

func (c *daemons) useOf(s *set) placement.Use {
	return placement.Of(&corev1.Pod{Spec: s.ds.Spec.Template.Spec})
}

// unfit says why the set's pod does not fit on a node, "" if it does or if
// that is for a scheduler to find out.
func (c *daemons) unfit(s *set, name string, node *corev1.Node) string {
	if !c.bind || node == nil {
		return ""
	}
	var others []placement.Use
	for _, pod := range c.indexed(byNode, name) {
		if placement.Occupies(pod) {
			others = append(others, placement.Of(pod))
		}
	}
	for o, use := range c.assumed[name] {
		if o != s {
			others = append(others, use)
		}
	}
	return placement.Fits(c.useOf(s), node, others)
}

func (c *daemons) roomFound(s *set, node string) {
	delete(s.unfit, node)
	if delete(c.cramped[node], s); len(c.cramped[node]) == 0 {
		delete(c.cramped, node)
	}
}

func (c *daemons) unassume(s *set, node string) {
	if delete(c.assumed[node], s); len(c.assumed[node]) == 0 {
		delete(c.assumed, node)
	}
	if len(c.cramped[node]) > 0 {
		c.queue.Add(item{kind: roomChanged, node: node})
	}
}
