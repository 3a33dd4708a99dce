package agent

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// callTimeout bounds one request that is not a watch.
const callTimeout = 15 * time.Second

// client speaks with the API server in the two API groups that a node needs.
// It stands in for client-go's clientset, whose scheme of all groups costs a
// third of the agent's memory.
type client struct {
	core, coordination *rest.RESTClient
	params             runtime.ParameterCodec
}

func newClient(config *rest.Config) (*client, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(v1.AddToScheme(scheme))
	utilruntime.Must(coordinationv1.AddToScheme(scheme))
	utilruntime.Must(authenticationv1.AddToScheme(scheme))
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	codecs := serializer.NewCodecFactory(scheme)

	base := rest.CopyConfig(config)
	base.NegotiatedSerializer = codecs.WithoutConversion()
	base.ContentType = runtime.ContentTypeProtobuf
	base.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	base.QPS = -1
	httpClient, err := rest.HTTPClientFor(base)
	if err != nil {
		return nil, fmt.Errorf("cannot use the credentials for %s: %w", config.Host, err)
	}
	c := &client{params: runtime.NewParameterCodec(scheme)}
	core := rest.CopyConfig(base)
	core.APIPath, core.GroupVersion = "/api", &v1.SchemeGroupVersion
	if c.core, err = rest.RESTClientForConfigAndClient(core, httpClient); err != nil {
		return nil, fmt.Errorf("cannot use the server address %q: %w", config.Host, err)
	}
	coordination := rest.CopyConfig(base)
	coordination.APIPath, coordination.GroupVersion = "/apis", &coordinationv1.SchemeGroupVersion
	if c.coordination, err = rest.RESTClientForConfigAndClient(coordination, httpClient); err != nil {
		return nil, fmt.Errorf("cannot use the server address %q: %w", config.Host, err)
	}
	return c, nil
}

// PatchPodStatus applies a strategic merge patch to a pod's status.
func (c *client) PatchPodStatus(ctx context.Context, namespace, name string, patch []byte) (*v1.Pod, error) {
	pod := &v1.Pod{}
	err := c.core.Patch(types.StrategicMergePatchType).Namespace(namespace).Resource("pods").Name(name).
		SubResource("status").Timeout(callTimeout).Body(patch).Do(ctx).Into(pod)
	return pod, err
}

// DeletePod removes the pod's object if it still has this UID.
func (c *client) DeletePod(ctx context.Context, namespace, name string, uid types.UID) error {
	now := int64(0)
	return c.core.Delete().Namespace(namespace).Resource("pods").Name(name).Timeout(callTimeout).
		Body(&metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &uid}}).
		Do(ctx).Error()
}

// CreateEvent records an event.
func (c *client) CreateEvent(ctx context.Context, event *v1.Event) error {
	return c.core.Post().Namespace(event.Namespace).Resource("events").Timeout(callTimeout).Body(event).Do(ctx).Error()
}

// CreateToken asks for a service account's token.
func (c *client) CreateToken(ctx context.Context, namespace, account string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	out := &authenticationv1.TokenRequest{}
	err := c.core.Post().Namespace(namespace).Resource("serviceaccounts").Name(account).SubResource("token").Timeout(callTimeout).Body(request).Do(ctx).Into(out)
	return out, err
}

// GetNode reads a node.
func (c *client) GetNode(ctx context.Context, name string) (*v1.Node, error) {
	node := &v1.Node{}
	err := c.core.Get().Resource("nodes").Name(name).Timeout(callTimeout).Do(ctx).Into(node)
	return node, err
}

// CreateNode registers a node.
func (c *client) CreateNode(ctx context.Context, node *v1.Node) (*v1.Node, error) {
	out := &v1.Node{}
	err := c.core.Post().Resource("nodes").Timeout(callTimeout).Body(node).Do(ctx).Into(out)
	return out, err
}

// PatchNode applies a strategic merge patch to a node, or to its status.
func (c *client) PatchNode(ctx context.Context, name string, patch []byte, subresource ...string) (*v1.Node, error) {
	node := &v1.Node{}
	err := c.core.Patch(types.StrategicMergePatchType).Resource("nodes").Name(name).
		SubResource(subresource...).Timeout(callTimeout).Body(patch).Do(ctx).Into(node)
	return node, err
}

// GetLease reads a node's lease.
func (c *client) GetLease(ctx context.Context, name string) (*coordinationv1.Lease, error) {
	lease := &coordinationv1.Lease{}
	err := c.coordination.Get().Namespace(v1.NamespaceNodeLease).Resource("leases").Name(name).Timeout(callTimeout).Do(ctx).Into(lease)
	return lease, err
}

// CreateLease makes a node's lease.
func (c *client) CreateLease(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	out := &coordinationv1.Lease{}
	err := c.coordination.Post().Namespace(v1.NamespaceNodeLease).Resource("leases").Timeout(callTimeout).Body(lease).Do(ctx).Into(out)
	return out, err
}

// UpdateLease renews a node's lease.
func (c *client) UpdateLease(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	out := &coordinationv1.Lease{}
	err := c.coordination.Put().Namespace(v1.NamespaceNodeLease).Resource("leases").Name(lease.Name).Timeout(callTimeout).Body(lease).Do(ctx).Into(out)
	return out, err
}

// WatchPods tells sink of the pods of a node until ctx ends; see follow.
func (c *client) WatchPods(ctx context.Context, node string, sink podSink, outcome func(error)) {
	selector := fields.OneTermEqualSelector("spec.nodeName", node)
	pods := cache.NewListWatchFromClient(c.core, "pods", metav1.NamespaceAll, selector)
	follow(ctx, pods, &v1.Pod{}, &podStore{sink: sink}, pace{100 * time.Millisecond, 2 * time.Second}, outcome)
}

// podSink takes the pods of this node.
type podSink interface {
	Listed(pods []*v1.Pod)
	Changed(pod *v1.Pod)
	Deleted(pod *v1.Pod)
}

// podStore is the reflector's store, without storing.
type podStore struct{ sink podSink }

func (s *podStore) Add(obj any) error {
	s.sink.Changed(slim(obj))
	return nil
}

func (s *podStore) Update(obj any) error { return s.Add(obj) }

func (s *podStore) Delete(obj any) error {
	s.sink.Deleted(slim(obj))
	return nil
}

func (s *podStore) Replace(list []any, _ string) error {
	pods := make([]*v1.Pod, 0, len(list))
	for _, obj := range list {
		pods = append(pods, slim(obj))
	}
	s.sink.Listed(pods)
	return nil
}

func (s *podStore) Resync() error { return nil }

func slim(obj any) *v1.Pod {
	pod := obj.(*v1.Pod)
	pod.ManagedFields = nil
	return pod
}
