package apiserver

import (
	"slices"
	"sync"

	etcdclient "go.etcd.io/etcd/client/v3/kubernetes"
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	"k8s.io/client-go/tools/cache"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// ownStorage has the registries keep their objects in the etcd of this process
// by calls, where upstream's own storage would speak gRPC to it.
type ownStorage struct {
	generic.RESTOptionsGetter
	client *etcdclient.Client
	pool   *pool
	parts  *podParts
}

// GetRESTOptions is upstream's, with another way to the store.
func (s ownStorage) GetRESTOptions(resource schema.GroupResource, example runtime.Object) (generic.RESTOptions, error) {
	options, err := s.RESTOptionsGetter.GetRESTOptions(resource, example)
	// Events are watched by few and have no watch cache
	// (k8s.io/kubernetes/pkg/kubeapiserver, DefaultWatchCacheSizes).
	if err == nil && resource.Resource != "events" {
		options.Decorator = s.open
	}
	return options, err
}

// withoutCache are the resources that have no watch cache. A Lease changes every
// few seconds and is watched by the controllers only: a cache of them, with all
// versions of 75 seconds, takes more memory than the nodes and pods, and more
// time than a second watcher of etcd.
var withoutCache = []schema.GroupResource{{Group: coordinationv1.GroupName, Resource: "leases"}}

func uncached(resource schema.GroupResource) bool { return slices.Contains(withoutCache, resource) }

// open follows upstream's StorageWithCacher
// (k8s.io/apiserver/pkg/registry/generic/registry/storage_factory.go) and
// newETCD3Storage (storage/storagebackend/factory/etcd3.go). Old revisions are
// compacted by upstream's storage of events, in the same etcd.
func (s ownStorage) open(
	config *storagebackend.ConfigForResource, prefix string, keyFunc func(runtime.Object) (string, error),
	newFunc, newListFunc func() runtime.Object, attributes storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	transformer := config.Transformer
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	versioner := storage.APIObjectVersioner{}
	// The first codec decodes what is watched and kept; what is read one by one,
	// and may be changed by who has read it, goes by the second.
	var kept, read runtime.Codec = sharingCodec{config.Codec, s.pool}, config.Codec
	if config.GroupResource == api.Resource("pods") {
		kept, read = podCodec{kept, s.parts, s.pool}, podCodec{read, s.parts, nil}
		attributes = s.parts.attributes(attributes)
	}
	raw, err := etcd3.New(s.client, nil, kept, newFunc, newListFunc, config.Prefix, prefix, config.GroupResource,
		transformer, config.LeaseManagerConfig, etcd3.NewDefaultDecoder(read, versioner), versioner)
	if err != nil {
		return nil, nil, err
	}
	if uncached(config.GroupResource) {
		return raw, sync.OnceFunc(raw.Close), nil
	}
	cached, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage:             sharingLists{raw, s.pool},
		Versioner:           versioner,
		GroupResource:       config.GroupResource,
		EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix:      prefix,
		KeyFunc:             keyFunc,
		NewFunc:             newFunc,
		NewListFunc:         newListFunc,
		GetAttrsFunc:        attributes,
		IndexerFuncs:        triggers,
		Indexers:            indexers,
		Codec:               config.Codec,
	})
	if err != nil {
		return nil, nil, err
	}
	delegator := cacher.NewCacheDelegator(cached, raw)
	var store storage.Interface = delegator
	if config.GroupResource == api.Resource("pods") {
		store = podStorage{delegator, raw, s.parts}
	}
	return store, sync.OnceFunc(func() {
		delegator.Stop()
		cached.Stop()
		raw.Close()
	}), nil
}
