package apiserver

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	leasestore "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
)

// leaseREST keeps no managed fields of Leases until somebody applies to one.
// With many nodes most writes are renewals, and to find out who has set which
// field, each time again, is a fifth of what one costs.
type leaseREST struct {
	*leasestore.REST
	last *lastLeases
}

// Create is upstream's.
func (r leaseREST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	if accessor, err := meta.Accessor(obj); err == nil && options.FieldManager == "" {
		accessor.SetManagedFields(nil)
	}
	made, err := r.REST.Create(ctx, obj, validate, options)
	if err == nil && len(options.DryRun) == 0 {
		r.last.wrote(made)
	}
	return made, err
}

// Update is upstream's.
func (r leaseREST) Update(
	ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc,
	update rest.ValidateObjectUpdateFunc, force bool, options *metav1.UpdateOptions,
) (runtime.Object, bool, error) {
	made, created, err := r.REST.Update(ctx, name, info, create, update, force, options)
	if err == nil && len(options.DryRun) == 0 {
		r.last.wrote(made)
	}
	return made, created, err
}

// Delete is upstream's.
func (r leaseREST) Delete(
	ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions,
) (runtime.Object, bool, error) {
	r.last.forget(request.NamespaceValue(ctx), name)
	return r.REST.Delete(ctx, name, validate, options)
}

// certificateTime is how long a verified client certificate is not verified
// again. A request on an open connection needs no more: its owner has proved
// to have the key when the connection was made.
const certificateTime = time.Minute

// certificateCache remembers whom client certificates belong to. Upstream verifies
// the certificate's chain with each request.
type certificateCache struct {
	authenticator.Request
	now func() time.Time

	mu    sync.Mutex
	known map[[sha256.Size]byte]knownCertificate
	// swept is when those were last dropped whose time is over.
	swept time.Time
}

type knownCertificate struct {
	response *authenticator.Response
	until    time.Time
}

func rememberCertificates(next authenticator.Request) *certificateCache {
	return &certificateCache{Request: next, now: time.Now, known: map[[sha256.Size]byte]knownCertificate{}}
}

// AuthenticateRequest asks upstream's authenticator unless it has said of late
// whose certificate this is.
func (c *certificateCache) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	// What else may say who asks is looked at each time.
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return c.Request.AuthenticateRequest(r)
	}
	leaf := r.TLS.PeerCertificates[0]
	if r.Header.Get("Authorization") != "" || r.Header.Get("Sec-Websocket-Protocol") != "" {
		response, ok, err := c.Request.AuthenticateRequest(r)
		return dated(response, leaf), ok, err
	}
	id, now := sha256.Sum256(leaf.Raw), c.now()
	if k, ok := c.find(id, now); ok {
		return k.response, true, nil
	}
	response, ok, err := c.Request.AuthenticateRequest(r)
	response = dated(response, leaf)
	if err == nil && ok && response != nil && byCertificate(response.User) {
		until := now.Add(certificateTime)
		if leaf.NotAfter.Before(until) {
			until = leaf.NotAfter
		}
		c.keep(id, knownCertificate{response, until}, now)
	}
	return response, ok, err
}

func (c *certificateCache) find(id [sha256.Size]byte, now time.Time) (knownCertificate, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.known[id]
	return k, ok && now.Before(k.until)
}

func (c *certificateCache) keep(id [sha256.Size]byte, k knownCertificate, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.swept) > certificateTime {
		c.swept = now
		for id, k := range c.known {
			if !now.Before(k.until) {
				delete(c.known, id)
			}
		}
	}
	c.known[id] = k
}

// byCertificate says whether it was the certificate that was believed.
func byCertificate(u user.Info) bool {
	ids := u.GetExtra()[user.CredentialIDKey]
	return len(ids) == 1 && strings.HasPrefix(ids[0], "X509SHA256=")
}
