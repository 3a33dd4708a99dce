package serverd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/controller"
	"legion.dev/legion/internal/daemonset"
	"legion.dev/legion/internal/placement"
)

// fleetState is one DaemonSet and all nodes as it sees them, read from the API
// as the controller reads them.
type fleetState struct {
	ds      *appsv1.DaemonSet
	hash    string
	history daemonset.History
	policy  *daemonset.Policy
	nodes   []daemonset.Node
	// zones are the values by which people group nodes: those of the order-by
	// label, or the topology's.
	zones map[string]string
	since time.Time
}

// gather reads what a plan of the DaemonSet needs. It may differ from the one
// that the API has (a plan of a change); then it has that one's UID.
func gather(ctx context.Context, client kubernetes.Interface, ds *appsv1.DaemonSet) (*fleetState, error) {
	s := &fleetState{ds: ds, zones: map[string]string{}}
	if err := s.readRevision(ctx, client); err != nil {
		return nil, err
	}
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("cannot ask the API server who it is: %w", err)
	}
	setting := daemonset.Setting{Own: strings.HasSuffix(version.GitVersion, "+legion")}
	if daemonset.Drives(ds) {
		lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, controller.FieldManager, metav1.GetOptions{})
		setting.UpdatesOnly = err == nil && lease.Labels[controller.ModeLabel] == controller.ModeUpdatesOnly
	}
	if class := ds.Spec.Template.Spec.RuntimeClassName; class != nil {
		if rc, err := client.NodeV1().RuntimeClasses().Get(ctx, *class, metav1.GetOptions{}); err == nil {
			setting.Handler = func(string) (string, bool) { return rc.Handler, true }
		}
	}
	if s.policy, err = daemonset.Compile(ds, s.hash, setting); err != nil {
		return nil, err
	}
	return s, s.readNodes(ctx, client, setting.Own)
}

// readRevision finds the revision of the template among those there are.
func (s *fleetState) readRevision(ctx context.Context, client kubernetes.Interface) error {
	list, err := client.AppsV1().ControllerRevisions(s.ds.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("cannot read the revisions of daemonset %s/%s: %w", s.ds.Namespace, s.ds.Name, err)
	}
	var own []*appsv1.ControllerRevision
	for i := range list.Items {
		if ref := metav1.GetControllerOf(&list.Items[i]); ref != nil && ref.UID == s.ds.UID {
			own = append(own, &list.Items[i])
		}
	}
	patch, err := daemonset.Patch(s.ds)
	if err != nil {
		return err
	}
	s.history = daemonset.Sort(own, patch)
	s.hash, s.since = daemonset.Hash(&s.ds.Spec.Template, s.ds.Status.CollisionCount), time.Now()
	if r := s.history.Current; r != nil {
		s.hash, s.since = r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey], daemonset.CurrentSince(r)
	}
	return nil
}

// readNodes reads all nodes, the DaemonSet's pods, and where Legion binds pods
// itself also whether one more would fit.
func (s *fleetState) readNodes(ctx context.Context, client kubernetes.Interface, binds bool) error {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("cannot read the nodes: %w", err)
	}
	namespace := s.ds.Namespace
	if binds {
		namespace = metav1.NamespaceAll
	}
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("cannot read the pods: %w", err)
	}
	own, uses := map[string][]daemonset.Pod{}, map[string][]placement.Use{}
	for i := range pods.Items {
		p := &pods.Items[i]
		if binds && p.Spec.NodeName != "" && placement.Occupies(p) {
			uses[p.Spec.NodeName] = append(uses[p.Spec.NodeName], placement.Of(p))
		}
		if ref := metav1.GetControllerOf(p); ref != nil && s.ds.UID != "" && ref.UID == s.ds.UID {
			node := daemonset.TargetNode(p)
			own[node] = append(own[node], daemonset.Observe(p))
		}
	}
	want := placement.Of(&corev1.Pod{Spec: s.ds.Spec.Template.Spec})
	for i := range nodes.Items {
		node := &nodes.Items[i]
		n := daemonset.Node{
			Name: node.Name, Exists: true, Eligibility: s.policy.Eligible(node), Pods: own[node.Name],
			Wave: s.policy.WaveOf(node), NotReady: daemonset.NotReady(node),
		}
		if binds && n.Run && len(n.Pods) == 0 {
			n.Unfit = placement.Fits(want, node, uses[node.Name])
		}
		delete(own, node.Name)
		s.nodes = append(s.nodes, n)
		s.zones[node.Name] = s.zone(node)
	}
	for name, pods := range own {
		s.nodes = append(s.nodes, daemonset.Node{Name: name, Eligibility: daemonset.Eligibility{Reason: "the node is gone"}, Pods: pods})
	}
	slices.SortFunc(s.nodes, func(a, b daemonset.Node) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func (s *fleetState) zone(node *corev1.Node) string {
	options, _ := s.policy.Options()
	key := options.OrderBy
	if key == "" {
		key = corev1.LabelTopologyZone
	}
	value, ok := node.Labels[key]
	if !ok {
		return ""
	}
	return key[strings.LastIndex(key, "/")+1:] + "=" + value
}

// fleet judges all nodes.
func (s *fleetState) fleet(now time.Time) *daemonset.Fleet {
	f := daemonset.NewFleet(s.policy)
	f.Begin(s.since)
	f.First(len(s.history.Old) == 0)
	for _, n := range s.nodes {
		n.Pods = slices.Clone(n.Pods)
		f.Set(n, now)
	}
	return f
}
