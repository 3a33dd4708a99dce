package apiserver

import (
	"context"
	"crypto/x509"
	"fmt"
	"hash/fnv"
	"io"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
	"k8s.io/kubernetes/pkg/apis/core"

	"legion.dev/legion/internal/pki"
)

// A node whose Node was deleted is removed from the fleet: certificates that
// were given to it before that are refused. When which node was removed is kept
// in ConfigMaps, so that all servers of a fleet know, and after a restart. A
// node that joins again gets a certificate that is newer.

// removedLabel is on these ConfigMaps, in kube-system: node → time.
const removedLabel = "legion.dev/removed-nodes"

// removedNodesName is the ConfigMap of a node: one would not hold a large fleet,
// and be long to write.
func removedNodesName(node string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	return fmt.Sprintf("legion-removed-nodes-%02x", h.Sum32()&0xff)
}

// removedPlugin is the admission plugin that sees Nodes being deleted.
const removedPlugin = "LegionRemovedNodes"

// issuedKey says in a user's extra fields when its certificate was made.
const issuedKey = "legion.dev/certificate-issued"

func registerRemoved(plugins *admission.Plugins) {
	plugins.Register(removedPlugin, func(io.Reader) (admission.Interface, error) {
		return &removedAdmission{Handler: admission.NewHandler(admission.Delete)}, nil
	})
}

// removedAdmission notes a Node that is about to be deleted. It is asked for
// each Node, also of a collection, with the deletion decided upon.
type removedAdmission struct {
	*admission.Handler
	client kubernetes.Interface
	// mu keeps removals through this server from crossing each other.
	mu sync.Mutex
}

var _ admission.ValidationInterface = &removedAdmission{}

// SetExternalKubeClientSet is called before the first request.
func (r *removedAdmission) SetExternalKubeClientSet(client kubernetes.Interface) { r.client = client }

// ValidateInitialization says what is missing.
func (r *removedAdmission) ValidateInitialization() error {
	if r.client == nil {
		return fmt.Errorf("%s has no client", removedPlugin)
	}
	return nil
}

// Validate notes the removal; where that fails the Node stays.
func (r *removedAdmission) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != core.Resource("nodes") || a.GetSubresource() != "" || a.GetName() == "" || a.IsDryRun() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := noteRemoved(ctx, r.client, a.GetName(), time.Now()); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("cannot note that node %q is removed, so it stays: %w", a.GetName(), err))
	}
	return nil
}

// noteRemoved keeps when a node was removed, and forgets those whose
// certificates have ended since.
func noteRemoved(ctx context.Context, client kubernetes.Interface, node string, now time.Time) error {
	name := removedNodesName(node)
	maps := client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	// Certificates are dated by the second.
	at := now.UTC().Truncate(time.Second).Add(time.Second).Format(time.RFC3339)
	return retry.OnError(retry.DefaultBackoff, func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) }, func() error {
		held, err := maps.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			first := metav1.ObjectMeta{Name: name, Labels: map[string]string{removedLabel: "true"}}
			_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: first, Data: map[string]string{node: at}}, metav1.CreateOptions{})
			return err
		}
		if err != nil {
			return err
		}
		held = held.DeepCopy()
		for name, text := range held.Data {
			if then, err := time.Parse(time.RFC3339, text); err != nil || now.Sub(then) > pki.LongestLife {
				delete(held.Data, name)
			}
		}
		if held.Data == nil {
			held.Data = map[string]string{}
		}
		held.Data[node] = at
		_, err = maps.Update(ctx, held, metav1.UpdateOptions{})
		return err
	})
}

// removedNodes refuses nodes that were removed.
type removedNodes struct {
	// drop ends a node's tunnel.
	drop func(node string)

	mu sync.Mutex
	// at holds what each ConfigMap says.
	at map[string]map[string]time.Time
}

// follow learns of removals until ctx ends.
func (r *removedNodes) follow(ctx context.Context, client kubernetes.Interface) {
	list := cache.NewFilteredListWatchFromClient(client.CoreV1().RESTClient(), "configmaps", metav1.NamespaceSystem,
		func(o *metav1.ListOptions) { o.LabelSelector = removedLabel })
	told := func(object any, news bool) {
		if m, ok := object.(*corev1.ConfigMap); ok {
			r.told(m.Name, m.Data, news)
		}
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: list, ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerDetailedFuncs{
			AddFunc:    func(object any, first bool) { told(object, !first) },
			UpdateFunc: func(_, object any) { told(object, true) },
		},
	})
	informer.RunWithContext(ctx)
}

// told takes what a ConfigMap says; where it is news, tunnels end with it.
func (r *removedNodes) told(name string, data map[string]string, news bool) {
	at := make(map[string]time.Time, len(data))
	for node, text := range data {
		if then, err := time.Parse(time.RFC3339, text); err == nil {
			at[node] = then
		}
	}
	r.mu.Lock()
	if r.at == nil {
		r.at = map[string]map[string]time.Time{}
	}
	before := r.at[name]
	r.at[name] = at
	r.mu.Unlock()
	for node, then := range at {
		if news && !before[node].Equal(then) && r.drop != nil {
			r.drop(node)
		}
	}
}

// since is when a node was removed; zero for never.
func (r *removedNodes) since(node string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at[removedNodesName(node)][node]
}

// Authorize denies everything to a certificate that is older than the removal
// of its node.
func (r *removedNodes) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	who := a.GetUser()
	if who == nil {
		return authorizer.DecisionNoOpinion, "", nil
	}
	node, isNode := strings.CutPrefix(who.GetName(), nodeUserPrefix)
	dated := who.GetExtra()[issuedKey]
	if !isNode || len(dated) != 1 {
		return authorizer.DecisionNoOpinion, "", nil
	}
	at := r.since(node)
	issued, err := time.Parse(time.RFC3339, dated[0])
	if at.IsZero() || err == nil && !issued.Before(at) {
		return authorizer.DecisionNoOpinion, "", nil
	}
	return authorizer.DecisionDeny, fmt.Sprintf("%s at %s; to have it back, join it with a new token ('legion token create')", fmt.Sprintf(pki.RemovedWords, node), at.Format(time.RFC3339)), nil
}

const nodeUserPrefix = "system:node:"

// dated says of a node when the certificate was made by which it is known.
func dated(response *authenticator.Response, leaf *x509.Certificate) *authenticator.Response {
	if response == nil || response.User == nil || !byCertificate(response.User) || !strings.HasPrefix(response.User.GetName(), nodeUserPrefix) {
		return response
	}
	extra := map[string][]string{issuedKey: {pki.IssuedAt(leaf).UTC().Format(time.RFC3339)}}
	for key, values := range response.User.GetExtra() {
		if key != issuedKey {
			extra[key] = values
		}
	}
	out := *response
	out.User = &user.DefaultInfo{Name: response.User.GetName(), UID: response.User.GetUID(), Groups: response.User.GetGroups(), Extra: extra}
	return &out
}
