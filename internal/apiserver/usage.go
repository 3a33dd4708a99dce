package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/kubernetes"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/metrics/pkg/apis/metrics"
	metricsinstall "k8s.io/metrics/pkg/apis/metrics/install"

	"legion.dev/legion/internal/tunnel"
)

func init() { metricsinstall.Install(legacyscheme.Scheme) }

// The bounds of asking nodes what they use.
const (
	usageTimeout = 5 * time.Second
	usageAtOnce  = 64
	// usageMost bounds one node's answer, in bytes.
	usageMost = 4 << 20
)

// usageProvider serves metrics.k8s.io, for kubectl top: each request asks the
// agents, through their tunnels. Nodes without one are left out, as upstream's
// metrics-server leaves out those that do not answer.
type usageProvider struct {
	client   kubernetes.Interface
	sessions *tunnel.Sessions
}

func (usageProvider) GroupName() string { return metrics.GroupName }

func (p usageProvider) NewRESTStorage(serverstorage.APIResourceConfigSource, generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info := genericapiserver.NewDefaultAPIGroupInfo(metrics.GroupName, legacyscheme.Scheme, legacyscheme.ParameterCodec, legacyscheme.Codecs)
	info.VersionedResourcesStorageMap["v1beta1"] = map[string]rest.Storage{"nodes": nodeUsage{usage{p}}, "pods": podUsage{usage{p}}}
	return info, nil
}

// usage is what both resources share.
type usage struct{ usageProvider }

// ask gets the summaries of these nodes, in no order.
func (u usage) ask(ctx context.Context, nodes []string) []*statsapi.Summary {
	ctx, cancel := context.WithTimeout(ctx, usageTimeout)
	defer cancel()
	var mu sync.Mutex
	var out []*statsapi.Summary
	var all sync.WaitGroup
	places := make(chan struct{}, usageAtOnce)
	for _, node := range nodes {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			if s, err := u.askOne(ctx, node); err == nil {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, s)
			}
		})
	}
	all.Wait()
	return out
}

func (u usage) askOne(ctx context.Context, node string) (*statsapi.Summary, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/stats/summary", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: u.sessions.Transport(node)}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("node %s answers %s", node, resp.Status)
	}
	s := &statsapi.Summary{}
	if err := json.NewDecoder(io.LimitReader(resp.Body, usageMost)).Decode(s); err != nil {
		return nil, err
	}
	// Whatever it calls itself: a node speaks for itself only.
	s.Node.NodeName = node
	return s, nil
}

func used(cpu *statsapi.CPUStats, memory *statsapi.MemoryStats) corev1.ResourceList {
	list := corev1.ResourceList{}
	if cpu != nil && cpu.UsageNanoCores != nil {
		list[corev1.ResourceCPU] = *resource.NewScaledQuantity(int64(*cpu.UsageNanoCores), resource.Nano)
	}
	if memory != nil && memory.WorkingSetBytes != nil {
		list[corev1.ResourceMemory] = *resource.NewQuantity(int64(*memory.WorkingSetBytes), resource.BinarySI)
	}
	return list
}

// window is the least that a rate is of.
var window = metav1.Duration{Duration: time.Second}

func listOptions(o *internalversion.ListOptions) metav1.ListOptions {
	out := metav1.ListOptions{ResourceVersion: "0"}
	if o != nil && o.LabelSelector != nil {
		out.LabelSelector = o.LabelSelector.String()
	}
	if o != nil && o.FieldSelector != nil {
		out.FieldSelector = o.FieldSelector.String()
	}
	return out
}

// nodeUsage is the resource nodes.
type nodeUsage struct{ usage }

var (
	_ rest.Lister               = nodeUsage{}
	_ rest.Getter               = nodeUsage{}
	_ rest.Scoper               = nodeUsage{}
	_ rest.KindProvider         = nodeUsage{}
	_ rest.SingularNameProvider = nodeUsage{}
)

func (nodeUsage) New() runtime.Object     { return &metrics.NodeMetrics{} }
func (nodeUsage) NewList() runtime.Object { return &metrics.NodeMetricsList{} }
func (nodeUsage) Destroy()                {}
func (nodeUsage) Kind() string            { return "NodeMetrics" }
func (nodeUsage) NamespaceScoped() bool   { return false }
func (nodeUsage) GetSingularName() string { return "" }

func (n nodeUsage) List(ctx context.Context, o *internalversion.ListOptions) (runtime.Object, error) {
	nodes, err := n.client.CoreV1().Nodes().List(ctx, listOptions(o))
	if err != nil {
		return nil, err
	}
	return n.of(ctx, nodes.Items), nil
}

func (n nodeUsage) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	node, err := n.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	list := n.of(ctx, []corev1.Node{*node})
	if len(list.Items) == 0 {
		return nil, apierrors.NewServiceUnavailable((&tunnel.NotConnectedError{Node: name}).Error())
	}
	return &list.Items[0], nil
}

func (n nodeUsage) of(ctx context.Context, nodes []corev1.Node) *metrics.NodeMetricsList {
	labels := map[string]map[string]string{}
	for i := range nodes {
		labels[nodes[i].Name] = nodes[i].Labels
	}
	list := &metrics.NodeMetricsList{}
	for _, s := range n.ask(ctx, slices.Collect(maps.Keys(labels))) {
		item := metrics.NodeMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: s.Node.NodeName, Labels: labels[s.Node.NodeName]},
			Timestamp:  metav1.Now(), Window: window, Usage: used(s.Node.CPU, s.Node.Memory),
		}
		if s.Node.CPU != nil {
			item.Timestamp = s.Node.CPU.Time
		}
		list.Items = append(list.Items, item)
	}
	slices.SortFunc(list.Items, func(a, b metrics.NodeMetrics) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (nodeUsage) ConvertToTable(ctx context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return rest.NewDefaultTableConvertor(metrics.Resource("nodes")).ConvertToTable(ctx, object, options)
}

// podUsage is the resource pods.
type podUsage struct{ usage }

var (
	_ rest.Lister               = podUsage{}
	_ rest.Getter               = podUsage{}
	_ rest.Scoper               = podUsage{}
	_ rest.KindProvider         = podUsage{}
	_ rest.SingularNameProvider = podUsage{}
)

func (podUsage) New() runtime.Object     { return &metrics.PodMetrics{} }
func (podUsage) NewList() runtime.Object { return &metrics.PodMetricsList{} }
func (podUsage) Destroy()                {}
func (podUsage) Kind() string            { return "PodMetrics" }
func (podUsage) NamespaceScoped() bool   { return true }
func (podUsage) GetSingularName() string { return "" }

func (p podUsage) List(ctx context.Context, o *internalversion.ListOptions) (runtime.Object, error) {
	pods, err := p.client.CoreV1().Pods(request.NamespaceValue(ctx)).List(ctx, listOptions(o))
	if err != nil {
		return nil, err
	}
	return p.of(ctx, pods.Items), nil
}

func (p podUsage) Get(ctx context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	pod, err := p.client.CoreV1().Pods(request.NamespaceValue(ctx)).Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, err
	}
	list := p.of(ctx, []corev1.Pod{*pod})
	if len(list.Items) == 0 {
		return nil, apierrors.NewNotFound(metrics.Resource("pods"), name)
	}
	return &list.Items[0], nil
}

// of asks only the nodes that these pods are on, and takes from each what it
// says of its own pods.
func (p podUsage) of(ctx context.Context, pods []corev1.Pod) *metrics.PodMetricsList {
	wanted := map[string]*corev1.Pod{}
	nodes := map[string]bool{}
	for i := range pods {
		if pod := &pods[i]; pod.Spec.NodeName != "" {
			wanted[string(pod.UID)] = pod
			nodes[pod.Spec.NodeName] = true
		}
	}
	list := &metrics.PodMetricsList{}
	for _, s := range p.ask(ctx, slices.Collect(maps.Keys(nodes))) {
		for i := range s.Pods {
			stats := &s.Pods[i]
			if pod := wanted[stats.PodRef.UID]; pod != nil && pod.Spec.NodeName == s.Node.NodeName && len(stats.Containers) > 0 {
				list.Items = append(list.Items, podMetrics(pod, stats))
			}
		}
	}
	slices.SortFunc(list.Items, func(a, b metrics.PodMetrics) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return list
}

func podMetrics(pod *corev1.Pod, stats *statsapi.PodStats) metrics.PodMetrics {
	item := metrics.PodMetrics{
		ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace, Labels: pod.Labels},
		Timestamp:  metav1.Now(), Window: window,
	}
	for _, c := range stats.Containers {
		if c.CPU != nil {
			item.Timestamp = c.CPU.Time
		}
		item.Containers = append(item.Containers, metrics.ContainerMetrics{Name: c.Name, Usage: used(c.CPU, c.Memory)})
	}
	return item
}

func (podUsage) ConvertToTable(ctx context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return rest.NewDefaultTableConvertor(metrics.Resource("pods")).ConvertToTable(ctx, object, options)
}
