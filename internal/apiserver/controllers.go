package apiserver

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/clusterroleaggregation"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/controlplane/controller/systemnamespaces"

	"legion.dev/legion/internal/pki"
)

var systemNamespaces = []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, metav1.NamespaceDefault}

// addHooks adds what starts together with the server, and what follows when it
// is ready.
func (c Config) addHooks(server *genericapiserver.GenericAPIServer, a *assembly, authority *pki.Authority, url string) error {
	namespaces := systemnamespaces.NewController(systemNamespaces, a.client, a.informers.Core().V1().Namespaces())
	own := &workers{}
	hooks := map[string]genericapiserver.PostStartHookFunc{
		"legion-system-namespaces": func(hook genericapiserver.PostStartHookContext) error {
			go namespaces.Run(hook.Done())
			return nil
		},
		"legion-bootstrap": func(hook genericapiserver.PostStartHookContext) error {
			return bootstrap(hook, a.client)
		},
		"legion-controllers": func(hook genericapiserver.PostStartHookContext) error {
			if err := startControllers(hook, a, authority); err != nil {
				return err
			}
			if c.Controllers != nil {
				inside := Inside{a.client, livingInformers{a.informers, hook}, rest.CopyConfig(a.loopback), a.refused}
				own.begin(hook, func(ctx context.Context) { c.runControllers(ctx, inside) })
			}
			return nil
		},
		"legion-removed-nodes": func(hook genericapiserver.PostStartHookContext) error {
			go a.removed.follow(hook, a.client)
			return nil
		},
		"legion-kubeconfig": func(genericapiserver.PostStartHookContext) error {
			return c.writeKubeconfig(authority, url)
		},
	}
	for name, hook := range hooks {
		if err := server.AddPostStartHook(name, hook); err != nil {
			return err
		}
	}
	// The API goes on until they have given up what they hold.
	if err := server.AddPreShutdownHook("legion-controllers", own.end); err != nil {
		return err
	}
	// Not a hook, since it waits for all of them.
	if c.Ready != nil {
		return server.AddPostStartHook("legion-ready", func(hook genericapiserver.PostStartHookContext) error {
			go c.tellReady(hook, a.client, url)
			return nil
		})
	}
	return nil
}

// workers are Legion's own controllers, as long as the server serves.
type workers struct {
	mu    sync.Mutex
	over  bool
	stop  context.CancelFunc
	ended chan struct{}
}

func (w *workers) begin(ctx context.Context, work func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	ctx, w.stop = context.WithCancel(ctx)
	ended := make(chan struct{})
	w.ended = ended
	go func() {
		defer close(ended)
		work(ctx)
	}()
}

// workersStop is how long they may take to end.
const workersStop = 5 * time.Second

// end asks them to end, and waits for it.
func (w *workers) end() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over = true; w.stop == nil {
		return nil
	}
	w.stop()
	select {
	case <-w.ended:
	case <-time.After(workersStop):
	}
	return nil
}

func (c Config) tellReady(ctx context.Context, client kubernetes.Interface, url string) {
	err := wait.PollUntilContextCancel(ctx, 10*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() == nil, nil
	})
	if err == nil {
		c.Ready(url)
	}
}

// runControllers runs Legion's own controllers again whenever they end early.
func (c Config) runControllers(ctx context.Context, inside Inside) {
	for ctx.Err() == nil {
		if err := c.Controllers(ctx, inside); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Legion's controllers ended; starting them again")
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// startControllers starts upstream's controllers, with the few workers that a
// fleet of daemons keeps busy.
func startControllers(ctx context.Context, a *assembly, authority *pki.Authority) error {
	core := a.informers.Core().V1()
	metadataClient, err := metadata.NewForConfig(a.loopback)
	if err != nil {
		return err
	}
	deletion := namespace.NewNamespaceController(ctx, a.client, metadataClient,
		a.client.Discovery().ServerPreferredNamespacedResources, core.Namespaces(), 5*time.Minute, corev1.FinalizerKubernetes)
	accounts, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), core.ServiceAccounts(), core.Namespaces(), a.client,
		serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return err
	}
	rootCA, err := rootcacertpublisher.NewPublisher(core.ConfigMaps(), core.Namespaces(), a.client, authority.PEM)
	if err != nil {
		return err
	}
	aggregation := clusterroleaggregation.NewClusterRoleAggregation(a.informers.Rbac().V1().ClusterRoles(), a.client.RbacV1())
	started := make(chan struct{})
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(a.client.Discovery()))
	metadataInformers := metadatainformer.NewSharedInformerFactory(metadataClient, 0)
	ignored := map[schema.GroupResource]struct{}{}
	for resource := range garbagecollector.DefaultIgnoredResources() {
		ignored[resource] = struct{}{}
	}
	garbage, err := garbagecollector.NewGarbageCollector(ctx, a.client, metadataClient, mapper, ignored,
		informerfactory.NewInformerFactory(a.informers, metadataInformers), started)
	if err != nil {
		return err
	}
	a.informers.Start(ctx.Done())
	metadataInformers.Start(ctx.Done())
	close(started)
	go deletion.Run(ctx, 4)
	go accounts.Run(ctx, 1)
	go rootCA.Run(ctx, 1)
	go aggregation.Run(ctx, 1)
	go garbage.Run(ctx, 8, 30*time.Second)
	go garbage.Sync(ctx, a.client.Discovery(), 30*time.Second)
	return nil
}
