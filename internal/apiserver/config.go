package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	goruntime "runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/path"
	"k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/filters"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/controlplane/apiserver/options"
	generatedopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	"k8s.io/kubernetes/pkg/kubeapiserver"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/tunnel"
)

// issuer names this server in the tokens of service accounts.
const issuer = "https://kubernetes.default.svc.cluster.local"

// admissionPlugins are on; all others are off. TaintNodesByCondition is not
// among them: it marks a new node not-ready, and the node controller does that
// already, from the Ready condition, for the whole of a node's life.
var admissionPlugins = []string{
	"NamespaceLifecycle", "ServiceAccount", "NodeRestriction", "Priority",
	"DefaultTolerationSeconds", "RuntimeClass", rolloutPlugin, removedPlugin,
}

// assembly is upstream's configuration and what Legion needs of it later.
type assembly struct {
	config     *genericapiserver.Config
	resources  *serverstorage.ResourceConfig
	storage    *serverstorage.DefaultStorageFactory
	informers  servedInformers
	client     kubernetes.Interface
	removed    removedNodes
	refused    func() time.Time // Inside.Refused
	direct     *direct
	loopback   *rest.Config
	tokens     serviceaccount.TokenGenerator
	pool       *pool
	completion options.CompletedOptions
}

// newOptions turns our few settings into upstream's many.
func newOptions(ctx context.Context, c Config, listener net.Listener, etcdServers []string) (options.CompletedOptions, error) {
	opts := options.NewOptions()
	address := listener.Addr().(*net.TCPAddr)
	// Told outright, since upstream's search fails where there is only loopback.
	opts.GenericServerRunOptions.AdvertiseAddress = address.IP
	if address.IP.IsUnspecified() {
		opts.GenericServerRunOptions.AdvertiseAddress = net.IPv4(127, 0, 0, 1)
	}
	opts.GenericServerRunOptions.ExternalHost = opts.GenericServerRunOptions.AdvertiseAddress.String()
	opts.SecureServing.Listener = listener
	opts.SecureServing.ServerCert.CertKey.CertFile = c.pki("server.crt")
	opts.SecureServing.ServerCert.CertKey.KeyFile = c.pki("server.key")
	opts.Etcd.StorageConfig.Transport.ServerList = etcdServers
	opts.Etcd.StorageConfig.Transport.TrustedCAFile = c.EtcdCA
	opts.Etcd.StorageConfig.Transport.CertFile = c.EtcdCert
	opts.Etcd.StorageConfig.Transport.KeyFile = c.EtcdKey
	for _, resource := range withoutCache {
		opts.Etcd.WatchCacheSizes = append(opts.Etcd.WatchCacheSizes, resource.String()+"#0")
	}
	opts.Features.EnablePriorityAndFairness = false
	opts.Features.EnableProfiling = c.Profiling
	opts.Authentication.ClientCert.ClientCA = c.pki("ca.crt")
	opts.Authentication.ServiceAccounts.Issuers = []string{issuer}
	opts.Authentication.ServiceAccounts.KeyFiles = []string{c.pki("sa.key")}
	opts.Authentication.RequestHeader = nil
	opts.ServiceAccountSigningKeyFile = c.pki("sa.key")
	opts.Authorization.Modes = []string{"Node", "RBAC"}
	registerRollout(opts.Admission.GenericAdmission.Plugins)
	registerRemoved(opts.Admission.GenericAdmission.Plugins)
	opts.Admission.GenericAdmission.RecommendedPluginOrder = append(
		slices.Clone(opts.Admission.GenericAdmission.RecommendedPluginOrder), rolloutPlugin, removedPlugin)
	opts.Admission.PluginNames = admissionPlugins
	// Daemons of nodes are often privileged. Who may make pods is RBAC's matter.
	capabilities.Setup(true, 0)
	return opts.Complete(ctx, nil, nil)
}

// assemble follows upstream's BuildGenericConfig
// (pkg/controlplane/apiserver/config.go), less what Legion leaves out:
// aggregation, priority and fairness, auditing, tracing, egress.
func assemble(ctx context.Context, s options.CompletedOptions) (*assembly, error) {
	a := &assembly{
		config:     genericapiserver.NewConfig(legacyscheme.Codecs),
		resources:  served(),
		tokens:     s.ServiceAccountIssuer,
		pool:       newPool(),
		completion: s,
	}
	a.config.MergedResourceConfig = a.resources
	if err := s.GenericServerRunOptions.ApplyTo(a.config); err != nil {
		return nil, err
	}
	a.config.EffectiveVersion = namedVersion{a.config.EffectiveVersion}
	if err := s.SecureServing.ApplyToConfig(a.config); err != nil {
		return nil, err
	}
	a.config.BuildHandlerChainFunc = func(handler http.Handler, c *genericapiserver.Config) http.Handler {
		processors := goruntime.GOMAXPROCS(0)
		busy := func() bool { return a.direct.writing.Load() > int32(writesPerProcessor*processors) }
		handler = tellStatusPatches(handler)
		general := genericapiserver.DefaultBuildHandlerChain(handler, c)
		return inTurn(&renewals{c, a.direct.stores.Load, &briefly{c, handler, general}}, newTurns(processors, busy))
	}
	a.loopback = a.config.LoopbackClientConfig
	a.loopback.ContentType = "application/vnd.kubernetes.protobuf"
	a.loopback.DisableCompression = true
	a.loopback.QPS = -1
	for _, step := range []func(context.Context) error{a.addClients, a.addOpenAPI, a.addStorage, a.addAccess, a.addAdmission} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *assembly) addClients(context.Context) (err error) {
	client, err := kubernetes.NewForConfig(a.loopback)
	if err != nil {
		return err
	}
	a.direct = &direct{}
	a.client = a.direct.client(client)
	a.informers = servedInformers{
		SharedInformerFactory: informers.NewSharedInformerFactoryWithOptions(a.client, 0, informers.WithTransform(a.pool.slim)),
		absent:                informers.NewSharedInformerFactory(a.client, 0),
	}
	return a.completion.Features.ApplyTo(a.config, a.client, a.informers)
}

func (a *assembly) addOpenAPI(context.Context) error {
	definitions := openapi.GetOpenAPIDefinitionsWithoutDisabledFeatures(servedDefinitions)
	namer := openapinamer.NewDefinitionNamer(legacyscheme.Scheme)
	a.config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(definitions, namer)
	a.config.OpenAPIConfig.Info.Title = "Legion"
	a.config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(definitions, namer)
	a.config.OpenAPIV3Config.Info.Title = "Legion"
	a.config.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis")
	longRunning := filters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"),
	)
	a.config.LongRunningFunc = func(r *http.Request, info *request.RequestInfo) bool {
		return info.Path == tunnel.Path || strings.HasPrefix(info.Path, tunnel.StreamPath) || longRunning(r, info)
	}
	return nil
}

func (a *assembly) addStorage(context.Context) (err error) {
	factory := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(a.config.EffectiveVersion)
	factory.APIResourceConfig = a.resources
	factory.DefaultResourceEncoding.SetEffectiveVersion(a.config.EffectiveVersion)
	if a.storage, err = factory.Complete(a.completion.Etcd).New(); err != nil {
		return err
	}
	a.storage.StorageConfig.StorageObjectCountTracker = a.config.StorageObjectCountTracker
	return a.completion.Etcd.ApplyWithStorageFactoryTo(a.storage, a.config)
}

// addAccess sets who may come in, and who may do what.
func (a *assembly) addAccess(ctx context.Context) error {
	err := a.completion.Authentication.ApplyTo(ctx, &a.config.Authentication, a.config.SecureServing, nil,
		a.config.OpenAPIConfig, a.config.OpenAPIV3Config, a.client, a.informers, a.config.APIServerID)
	if err != nil {
		return err
	}
	a.config.Authentication.Authenticator = rememberCertificates(a.config.Authentication.Authenticator)
	settings, err := a.completion.Authorization.ToAuthorizationConfig(a.informers)
	if err != nil {
		return err
	}
	upstream, rules, err := settings.New(ctx, a.config.APIServerID)
	if err != nil {
		return err
	}
	// A join is allowed to everybody and decided by its token.
	join, err := path.NewAuthorizer([]string{pki.JoinPath})
	if err != nil {
		return err
	}
	a.config.RuleResolver = rules
	a.config.Authorization.Authorizer, err = union.New(
		union.NamedAuthorizer{AuthorizerName: "legion.dev/removed", Authorizer: authorizer.AuthorizerFunc(a.removed.Authorize)},
		union.NamedAuthorizer{AuthorizerName: "legion.dev/join", Authorizer: join},
		union.NamedAuthorizer{AuthorizerName: "legion.dev/nodes", Authorizer: nodePaths},
		union.NamedAuthorizer{AuthorizerName: "legion.dev/kubernetes", Authorizer: upstream},
	)
	return err
}

// definitionPrefixes begin the names of the types that the served API is made
// of; eviction and scale come from policy and autoscaling.
var definitionPrefixes = []string{
	"io.k8s.apimachinery.", "io.k8s.api.core.v1.", "io.k8s.api.apps.v1.", "io.k8s.api.authentication.v1.",
	"io.k8s.api.authorization.v1.", "io.k8s.api.autoscaling.v1.", "io.k8s.api.coordination.v1.",
	"io.k8s.api.events.v1.", "io.k8s.api.node.v1.", "io.k8s.api.policy.v1.", "io.k8s.api.rbac.v1.",
	"io.k8s.api.scheduling.v1.", "io.k8s.metrics.pkg.apis.metrics.v1beta1.",
}

// servedDefinitions are the generated OpenAPI definitions of those types. All of
// Kubernetes' would stay in memory for the server's life.
func servedDefinitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	all := generatedopenapi.GetOpenAPIDefinitions(ref)
	kept := make(map[string]common.OpenAPIDefinition, len(all)/4)
	for name, definition := range all {
		for _, prefix := range definitionPrefixes {
			if strings.HasPrefix(name, prefix) {
				kept[name] = definition
				break
			}
		}
	}
	return kept
}

// namedVersion tells clients which Kubernetes' code this is. Upstream's build
// sets that by the linker, for its own programs.
type namedVersion struct {
	basecompatibility.EffectiveVersion
}

func (v namedVersion) Info() *version.Info {
	info := v.EffectiveVersion.Info()
	if build, ok := debug.ReadBuildInfo(); ok && info != nil {
		for _, module := range build.Deps {
			if module.Path == "k8s.io/kubernetes" {
				info.GitVersion = module.Version + "+legion"
			}
		}
	}
	return info
}

// nodePaths lets every node open its tunnel and renew its certificate.
var nodePaths = authorizer.AuthorizerFunc(func(_ context.Context, attributes authorizer.Attributes) (authorizer.Decision, string, error) {
	if attributes.IsResourceRequest() || attributes.GetPath() != tunnel.Path && attributes.GetPath() != pki.RenewPath {
		return authorizer.DecisionNoOpinion, "", nil
	}
	for _, group := range attributes.GetUser().GetGroups() {
		if group == user.NodesGroup {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "only nodes have a tunnel, and a certificate to renew", nil
})

func (a *assembly) addAdmission(context.Context) error {
	dynamicClient, err := dynamic.NewForConfig(a.loopback)
	if err != nil {
		return err
	}
	effective := compatibility.DefaultComponentGlobalsRegistry.EffectiveVersionFor(basecompatibility.DefaultKubeComponent)
	if err := a.completion.Admission.ApplyTo(a.config, a.informers, a.client, dynamicClient, utilfeature.DefaultFeatureGate, effective); err != nil {
		return fmt.Errorf("cannot set up admission: %w", err)
	}
	return nil
}

// tokenLife bounds the tokens of service accounts.
const tokenLife = 365 * 24 * time.Hour
