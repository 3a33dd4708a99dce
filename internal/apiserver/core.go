package apiserver

import (
	"time"

	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	configmapstore "k8s.io/kubernetes/pkg/registry/core/configmap/storage"
	endpointsstore "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	eventstore "k8s.io/kubernetes/pkg/registry/core/event/storage"
	namespacestore "k8s.io/kubernetes/pkg/registry/core/namespace/storage"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	podtemplatestore "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	secretstore "k8s.io/kubernetes/pkg/registry/core/secret/storage"
	serviceaccountstore "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"legion.dev/legion/internal/tunnel"
)

// eventTTL is how long events are kept.
const eventTTL = time.Hour

// coreGroup builds the storage of the core group: of upstream's registries those
// that a fleet of daemons needs. Upstream's own provider makes a store and a
// watch cache for the others too, served or not.
type coreGroup struct {
	storageFactory serverstorage.StorageFactory
	client         kubernetes.Interface
	authorizer     authorizer.Authorizer
	issuer         serviceaccount.TokenGenerator
	audiences      authenticator.Audiences
	tokenLife      time.Duration
	sessions       *tunnel.Sessions
}

func (coreGroup) GroupName() string { return api.GroupName }

func (g coreGroup) NewRESTStorage(_ serverstorage.APIResourceConfigSource, getter generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error) {
	info := genericapiserver.NewDefaultAPIGroupInfo(api.GroupName, legacyscheme.Scheme, legacyscheme.ParameterCodec, legacyscheme.Codecs)
	info.NegotiatedSerializer = serializer.NewCodecFactory(legacyscheme.Scheme,
		serializer.WithStreamingCollectionEncodingToJSON(), serializer.WithStreamingCollectionEncodingToProtobuf())
	storage := map[string]rest.Storage{}
	for _, add := range []func(generic.RESTOptionsGetter, map[string]rest.Storage) error{g.addPlain, g.addNodesAndPods} {
		if err := add(getter, storage); err != nil {
			return info, err
		}
	}
	info.VersionedResourcesStorageMap["v1"] = storage
	return info, nil
}

// addPlain adds what stands for itself.
func (g coreGroup) addPlain(getter generic.RESTOptionsGetter, storage map[string]rest.Storage) error {
	events, err := eventstore.NewREST(getter, uint64(eventTTL.Seconds()))
	if err != nil {
		return err
	}
	configMaps, err := configmapstore.NewREST(getter)
	if err != nil {
		return err
	}
	secrets, err := secretstore.NewREST(getter)
	if err != nil {
		return err
	}
	podTemplates, err := podtemplatestore.NewREST(getter)
	if err != nil {
		return err
	}
	endpoints, err := endpointsstore.NewREST(getter)
	if err != nil {
		return err
	}
	namespaces, namespaceStatus, namespaceFinalize, err := namespacestore.NewREST(getter)
	if err != nil {
		return err
	}
	storage["events"] = events
	storage["configmaps"] = configMaps
	storage["secrets"] = secrets
	storage["podtemplates"] = podTemplates
	storage["endpoints"] = endpoints
	storage["namespaces"] = namespaces
	storage["namespaces/status"] = namespaceStatus
	storage["namespaces/finalize"] = namespaceFinalize
	return nil
}

// addNodesAndPods adds nodes, pods, and what refers to them.
func (g coreGroup) addNodesAndPods(getter generic.RESTOptionsGetter, storage map[string]rest.Storage) error {
	connections := tunnelConnections{g.sessions}
	nodes, err := nodestore.NewStorage(getter, kubeletclient.KubeletClientConfig{Port: 10250}, nil)
	if err != nil {
		return err
	}
	pods, err := podstore.NewStorage(getter, connections, nil, g.client.PolicyV1(), g.authorizer)
	if err != nil {
		return err
	}
	storage["nodes"] = nodes.Node
	storage["nodes/proxy"] = nodeProxy{nodes.Proxy, connections}
	storage["nodes/status"] = nodes.Status
	storage["pods"] = newPodREST(pods.Pod)
	storage["pods/attach"] = pods.Attach
	storage["pods/status"] = newPodStatusREST(pods)
	storage["pods/log"] = pods.Log
	storage["pods/exec"] = pods.Exec
	storage["pods/portforward"] = pods.PortForward
	storage["pods/proxy"] = pods.Proxy
	storage["pods/binding"] = pods.Binding
	storage["pods/eviction"] = pods.Eviction
	storage["pods/ephemeralcontainers"] = pods.EphemeralContainers
	storage["pods/resize"] = pods.Resize
	storage["bindings"] = pods.LegacyBinding

	services, err := newServiceStorage(g.storageFactory, getter, pods.Pod)
	if err != nil {
		return err
	}
	for resource, store := range services {
		storage[resource] = store
	}

	webhooks := g.client.AdmissionregistrationV1()
	accounts, err := serviceaccountstore.NewREST(getter, g.issuer, g.audiences, g.authorizer, g.tokenLife,
		pods.Pod.Store, storage["secrets"].(rest.Getter), nodes.Node.Store,
		webhooks.ValidatingWebhookConfigurations(), webhooks.MutatingWebhookConfigurations(), true, g.tokenLife)
	if err != nil {
		return err
	}
	storage["serviceaccounts"] = accounts
	storage["serviceaccounts/token"] = accounts.Token
	return nil
}
