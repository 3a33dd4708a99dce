package apiserver

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	appsrest "k8s.io/kubernetes/pkg/registry/apps/rest"
	authenticationrest "k8s.io/kubernetes/pkg/registry/authentication/rest"
	authorizationrest "k8s.io/kubernetes/pkg/registry/authorization/rest"
	leasestore "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
	coordinationrest "k8s.io/kubernetes/pkg/registry/coordination/rest"
	eventsrest "k8s.io/kubernetes/pkg/registry/events/rest"
	noderest "k8s.io/kubernetes/pkg/registry/node/rest"
	policyrest "k8s.io/kubernetes/pkg/registry/policy/rest"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"

	// The schemes of the groups.
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
)

// served is what the API has, apart from the core group's details (core.go).
func served() *serverstorage.ResourceConfig {
	config := serverstorage.NewResourceConfig()
	config.EnableVersions(
		corev1.SchemeGroupVersion,
		authenticationv1.SchemeGroupVersion,
		authorizationv1.SchemeGroupVersion,
		coordinationv1.SchemeGroupVersion,
		eventsv1.SchemeGroupVersion,
		nodev1.SchemeGroupVersion,
		policyv1.SchemeGroupVersion,
		rbacv1.SchemeGroupVersion,
		schedulingv1.SchemeGroupVersion,
	)
	config.EnableResources(
		appsv1.SchemeGroupVersion.WithResource("daemonsets"),
		appsv1.SchemeGroupVersion.WithResource("controllerrevisions"),
	)
	return config
}

// provider makes the storage of one API group; upstream's registries are such.
type provider interface {
	GroupName() string
	NewRESTStorage(serverstorage.APIResourceConfigSource, generic.RESTOptionsGetter) (genericapiserver.APIGroupInfo, error)
}

// installGroups puts the API into the server, in the order discovery shows it,
// and notes in direct where the controllers of this process find their objects.
func installGroups(server *genericapiserver.GenericAPIServer, config *genericapiserver.Config, resources *serverstorage.ResourceConfig, core coreGroup, direct *stores) error {
	authn, authz := config.Authentication, config.Authorization
	providers := []provider{
		core,
		appsrest.StorageProvider{},
		authenticationrest.RESTStorageProvider{Authenticator: authn.Authenticator, APIAudiences: authn.APIAudiences},
		authorizationrest.RESTStorageProvider{Authorizer: authz.Authorizer, RuleResolver: config.RuleResolver},
		coordinationrest.RESTStorageProvider{},
		eventsrest.RESTStorageProvider{TTL: eventTTL},
		noderest.RESTStorageProvider{},
		policyrest.RESTStorageProvider{},
		rbacrest.RESTStorageProvider{Authorizer: authz.Authorizer},
		schedulingrest.RESTStorageProvider{},
		usageProvider{core.client, core.sessions},
	}
	var groups []*genericapiserver.APIGroupInfo
	for _, p := range providers {
		info, err := p.NewRESTStorage(resources, config.RESTOptionsGetter)
		if err != nil {
			return fmt.Errorf("cannot build the API group %q: %w", p.GroupName(), err)
		}
		storage := info.VersionedResourcesStorageMap["v1"]
		switch p.GroupName() {
		case "":
			direct.pods = storage["pods"].(podREST)
			direct.nodes = storage["nodes"].(rest.Watcher)
		case coordinationv1.GroupName:
			leases := &leaseREST{storage["leases"].(*leasestore.REST), newLastLeases()}
			storage["leases"] = leases
			direct.leases = leases
		}
		if p.GroupName() == "" {
			if err := server.InstallLegacyAPIGroup(genericapiserver.DefaultLegacyAPIPrefix, &info); err != nil {
				return fmt.Errorf("cannot install the core API group: %w", err)
			}
			continue
		}
		groups = append(groups, &info)
	}
	return server.InstallAPIGroups(groups...)
}
