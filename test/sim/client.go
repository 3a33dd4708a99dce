package sim

import (
	"context"
	"fmt"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// connection is how some of the nodes speak to the API server.
type connection struct {
	kubernetes.Interface
	wire *wire
}

// connect makes one client a connection, without a limit of its own.
func connect(cfg Config) ([]connection, error) {
	var out []connection
	for range cfg.Connections {
		c := rest.CopyConfig(cfg.REST)
		c.QPS = -1
		c.ContentType = "application/vnd.kubernetes.protobuf"
		c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
		c.UserAgent = "legion-sim"
		// A dialer of its own keeps client-go from sharing one connection.
		dialer := &net.Dialer{Timeout: 30 * time.Second}
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		}
		wire, err := newWire(c)
		if err != nil {
			return nil, fmt.Errorf("cannot reach the API server: %w", err)
		}
		client, err := kubernetes.NewForConfigAndClient(c, wire.client)
		if err != nil {
			return nil, fmt.Errorf("cannot reach the API server: %w", err)
		}
		out = append(out, connection{client, wire})
	}
	return out, nil
}

// client is the one that the pods of a node, and the node, speak through.
func (f *Fleet) client(n *node) connection { return f.clients[n.index%len(f.clients)] }

const byNode = "node"

// watch follows all pods that have a node.
func (f *Fleet) watch() error {
	source := cache.NewListWatchFromClient(f.clients[0].CoreV1().RESTClient(), "pods", metav1.NamespaceAll,
		fields.OneTermNotEqualSelector("spec.nodeName", ""))
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source,
		ObjectType:    &corev1.Pod{},
		Transform:     slim,
		Indexers: cache.Indexers{byNode: func(obj any) ([]string, error) {
			return []string{obj.(*corev1.Pod).Spec.NodeName}, nil
		}},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { f.look(obj.(*corev1.Pod)) },
			UpdateFunc: func(_, obj any) { f.look(obj.(*corev1.Pod)) },
			DeleteFunc: func(obj any) {
				if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = t.Obj
				}
				if pod, ok := obj.(*corev1.Pod); ok {
					f.forget(pod)
				}
			},
		},
	})
	f.pods = store.(cache.Indexer)
	f.running.Go(func() { informer.RunWithContext(f.life) })
	if !cache.WaitForCacheSync(f.life.Done(), informer.HasSynced) {
		return fmt.Errorf("cannot watch the pods: %w", f.life.Err())
	}
	f.watchNodes()
	return nil
}

// watchNodes has each node say again that it is ready when the control plane
// has taken it for lost, as kubelets do when they compare their status with
// the server's.
func (f *Fleet) watchNodes() {
	look := func(obj any) {
		o, ok := obj.(*corev1.Node)
		if !ok || len(o.Status.Conditions) == 0 || o.Status.Conditions[0].Status == corev1.ConditionTrue {
			return
		}
		f.mu.Lock()
		n := f.nodes[o.Name]
		f.mu.Unlock()
		if n != nil {
			n.speak()
		}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(f.clients[0].CoreV1().RESTClient(), "nodes", metav1.NamespaceAll, fields.Everything()),
		ObjectType:    &corev1.Node{},
		Transform:     slim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    look,
			UpdateFunc: func(_, obj any) { look(obj) },
		},
	})
	f.running.Go(func() { informer.RunWithContext(f.life) })
}

// slim keeps of a pod or node what a simulated kubelet looks at.
func slim(obj any) (any, error) {
	if node, ok := obj.(*corev1.Node); ok {
		out := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, ResourceVersion: node.ResourceVersion}}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady {
				out.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
			}
		}
		return out, nil
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			DeletionTimestamp: pod.DeletionTimestamp, DeletionGracePeriodSeconds: pod.DeletionGracePeriodSeconds,
		},
		Spec: corev1.PodSpec{NodeName: pod.Spec.NodeName},
		Status: corev1.PodStatus{
			Phase: pod.Status.Phase, StartTime: pod.Status.StartTime,
		},
	}
	for _, c := range pod.Spec.Containers {
		out.Spec.Containers = append(out.Spec.Containers, corev1.Container{Name: c.Name, Image: c.Image})
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out, nil
}
