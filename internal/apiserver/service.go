package apiserver

import (
	"context"
	"fmt"
	"net"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/warning"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/rangeallocation"
	"k8s.io/kubernetes/pkg/registry/core/service/allocator"
	serviceallocator "k8s.io/kubernetes/pkg/registry/core/service/allocator/storage"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	servicestore "k8s.io/kubernetes/pkg/registry/core/service/storage"
)

// notRouted is what who writes a Service is told.
const notRouted = "services are stored but not routed by Legion: no traffic is sent to this cluster IP or node port; reach the pods at their nodes' addresses"

// The ranges that upstream uses where nothing else is said.
var (
	clusterIPs = net.IPNet{IP: net.IPv4(10, 96, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}
	nodePorts  = utilnet.PortRange{Base: 30000, Size: 2768}
)

// serviceREST warns with every write of a Service.
type serviceREST struct{ *servicestore.REST }

func (r serviceREST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	warning.AddWarning(ctx, "", notRouted)
	return r.REST.Create(ctx, obj, validate, options)
}

func (r serviceREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, createValidation rest.ValidateObjectFunc, updateValidation rest.ValidateObjectUpdateFunc, forceAllowCreate bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	warning.AddWarning(ctx, "", notRouted)
	return r.REST.Update(ctx, name, info, createValidation, updateValidation, forceAllowCreate, options)
}

// newServiceStorage is upstream's storage of services with its allocators, so
// that an ordinary manifest is stored as elsewhere.
func newServiceStorage(factory serverstorage.StorageFactory, getter generic.RESTOptionsGetter, pods servicestore.PodStorage) (map[string]rest.Storage, error) {
	config, err := factory.NewConfig(api.Resource("services"), &api.Service{})
	if err != nil {
		return nil, err
	}
	var prepareErr error
	ips, err := ipallocator.New(&clusterIPs, func(maximum int, spec string, offset int) (allocator.Interface, error) {
		etcd, err := serviceallocator.NewEtcd(allocator.NewAllocationMapWithOffset(maximum, spec, offset), "/ranges/serviceips", config.ForResource(api.Resource("serviceipallocations")))
		if err == nil {
			prepareErr = prepareRange(etcd, clusterIPs.String())
		}
		return etcd, err
	})
	if err == nil {
		err = prepareErr
	}
	if err != nil {
		return nil, fmt.Errorf("cannot allocate cluster IPs: %w", err)
	}
	ports, err := portallocator.New(nodePorts, func(maximum int, spec string, offset int) (allocator.Interface, error) {
		etcd, err := serviceallocator.NewEtcd(allocator.NewAllocationMapWithOffset(maximum, spec, offset), "/ranges/servicenodeports", config.ForResource(api.Resource("servicenodeportallocations")))
		if err == nil {
			prepareErr = prepareRange(etcd, nodePorts.String())
		}
		return etcd, err
	})
	if err == nil {
		err = prepareErr
	}
	if err != nil {
		return nil, fmt.Errorf("cannot allocate node ports: %w", err)
	}
	families := map[api.IPFamily]ipallocator.Interface{ips.IPFamily(): ips}
	services, status, _, err := servicestore.NewREST(getter, ips.IPFamily(), families, ports, nil, pods, nil)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"services": serviceREST{services}, "services/status": status}, nil
}

// prepareRange makes the record of allocations where there is none yet:
// upstream's allocator refuses to allocate without one.
func prepareRange(registry rangeallocation.RangeRegistry, spec string) error {
	record, err := registry.Get()
	if err != nil || record.ResourceVersion != "" {
		return err
	}
	record.Range = spec
	return registry.CreateOrUpdate(record)
}
