package apiserver

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/metrics"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/coordination"
)

// Every node renews its Lease every ten seconds, and a renewal changes nothing
// but spec.renewTime. With 5,000 nodes that is most of what a server does all
// day. Of the general way of a request, its filters, routes, goroutines and
// merges, a renewal needs little: who asks, whether that is allowed, and that the
// Lease is the one that was written last. The rest is left out here.
const (
	leasePrefix = "/apis/coordination.k8s.io/v1/namespaces/"
	// longestLease bounds the body of a renewal, in bytes.
	longestLease = 16 << 10
	protobufType = "application/vnd.kubernetes.protobuf"
)

var (
	leaseKind     = coordinationv1.SchemeGroupVersion.WithKind("Lease")
	leaseResource = coordinationv1.SchemeGroupVersion.WithResource("leases")
	// leaseType is how a Lease says what it is.
	leaseType = runtime.TypeMeta{APIVersion: coordinationv1.SchemeGroupVersion.String(), Kind: "Lease"}
	// errNotRenewal says that the Lease in the store is not the one that was
	// written last: the general way finds out what it is.
	errNotRenewal = errors.New("not the Lease that was written last")
)

// lastLeases remembers of each Lease which version was written last, and what
// it says but for the time of its renewal, as a hash.
type lastLeases struct {
	mu    sync.Mutex
	known map[string]lastLease
	seeds [2]maphash.Seed
}

type lastLease struct {
	version uint64
	sum     [2]uint64
}

// mostLeases bounds how many are remembered.
const mostLeases = 1 << 16

func newLastLeases() *lastLeases {
	return &lastLeases{known: map[string]lastLease{}, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}}
}

// describe returns what is to be remembered of a Lease.
func (l *lastLeases) describe(lease *coordinationv1.Lease) (lastLease, bool) {
	version, err := strconv.ParseUint(lease.ResourceVersion, 10, 64)
	if err != nil || version == 0 {
		return lastLease{}, false
	}
	alike := *lease
	alike.ResourceVersion, alike.Spec.RenewTime = "", nil
	data, err := alike.Marshal()
	if err != nil {
		return lastLease{}, false
	}
	return lastLease{version, [2]uint64{maphash.Bytes(l.seeds[0], data), maphash.Bytes(l.seeds[1], data)}}, true
}

// wrote remembers the Lease that was written.
func (l *lastLeases) wrote(obj runtime.Object) {
	lease := &coordinationv1.Lease{}
	if legacyscheme.Scheme.Convert(obj, lease, nil) != nil {
		return
	}
	last, ok := l.describe(lease)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) >= mostLeases {
		clear(l.known)
	}
	l.known[lease.Namespace+"/"+lease.Name] = last
}

func (l *lastLeases) is(lease *coordinationv1.Lease) bool {
	asked, ok := l.describe(lease)
	l.mu.Lock()
	defer l.mu.Unlock()
	return ok && l.known[lease.Namespace+"/"+lease.Name] == asked
}

func (l *lastLeases) forget(namespace, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known, namespace+"/"+name)
}

// renewals is the short way of renewals.
type renewals struct {
	config *genericapiserver.Config
	stores func() *stores
	// next is the general way, for all else.
	next http.Handler
}

// ServeHTTP carries out what is a renewal for sure.
func (h *renewals) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	namespace, name, ok := looksLikeRenewal(r)
	stores := h.stores()
	if !ok || stores == nil || stores.leases == nil || h.config.NonLongRunningRequestWaitGroup.Add(1) != nil {
		h.next.ServeHTTP(w, r)
		return
	}
	defer h.config.NonLongRunningRequestWaitGroup.Done()
	body, err := io.ReadAll(io.LimitReader(r.Body, longestLease+1))
	whole := struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	var answer []byte
	if err == nil {
		answer, err = h.renew(r, stores, namespace, name, body)
	}
	if err != nil {
		r.Body = whole
		h.next.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-cache, private")
	w.Header().Set("Content-Type", protobufType)
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write(answer)
	metrics.MonitorRequest(r, http.MethodPut, leaseResource.Group, leaseResource.Version, leaseResource.Resource, "",
		"resource", metrics.APIServerComponent, false, "", http.StatusOK, len(answer), time.Since(began))
}

// looksLikeRenewal says of which Lease a request is, by its head, if it may be a renewal.
func looksLikeRenewal(r *http.Request) (namespace, name string, ok bool) {
	if r.Method != http.MethodPut || r.ContentLength <= 0 || r.ContentLength > longestLease {
		return "", "", false
	}
	rest, ok := strings.CutPrefix(r.URL.Path, leasePrefix)
	if !ok {
		return "", "", false
	}
	namespace, name, ok = strings.Cut(rest, "/leases/")
	query := r.URL.RawQuery
	switch {
	case !ok || namespace == "" || name == "" || strings.Contains(namespace+name, "/"):
	case query != "" && (!strings.HasPrefix(query, "timeout=") || strings.Contains(query, "&")):
	case r.Header.Get("Content-Type") != protobufType || !protobufFirst(r.Header.Get("Accept")):
	case !byCertificateAlone(r):
	default:
		return namespace, name, true
	}
	return "", "", false
}

// renew writes the Lease of the body, if that is allowed and a renewal, and
// returns the answer. Whatever is not as it should be is an error, and has
// changed nothing.
func (h *renewals) renew(r *http.Request, stores *stores, namespace, name string, body []byte) ([]byte, error) {
	lease, err := decodeLease(body)
	if err != nil {
		return nil, err
	}
	if lease.Namespace != namespace || lease.Name != name || lease.Spec.RenewTime == nil || !stores.leases.last.is(lease) {
		return nil, errNotRenewal
	}
	who, err := mayWrite(r.Context(), h.config, r, &request.RequestInfo{
		Verb: "update", Namespace: namespace, Name: name,
		APIGroup: leaseResource.Group, APIVersion: leaseResource.Version, Resource: leaseResource.Resource,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(request.WithNamespace(request.WithUser(r.Context(), who), namespace), directTime)
	defer cancel()
	old, renewed := *lease, &coordination.Lease{}
	old.Spec.RenewTime = nil
	before := &coordination.Lease{}
	if err := errors.Join(legacyscheme.Scheme.Convert(&old, before, nil), legacyscheme.Scheme.Convert(lease, renewed, nil)); err != nil {
		return nil, err
	}
	if err := h.admit(ctx, who, renewed, before); err != nil {
		return nil, err
	}
	written, err := stores.leases.renew(ctx, before, renewed)
	if err != nil {
		return nil, err
	}
	lease.ResourceVersion = written.ResourceVersion
	return encodeLease(lease)
}

// admit asks the admission plugins.
func (h *renewals) admit(ctx context.Context, who user.Info, renewed, before *coordination.Lease) error {
	chain := h.config.AdmissionControl
	if chain == nil || !chain.Handles(admission.Update) {
		return nil
	}
	attributes := admission.NewAttributesRecord(renewed, before, leaseKind, renewed.Namespace, renewed.Name, leaseResource, "",
		admission.Update, &metav1.UpdateOptions{}, false, who)
	if mutating, ok := chain.(admission.MutationInterface); ok {
		if err := mutating.Admit(ctx, attributes, interfaces); err != nil {
			return err
		}
	}
	if validating, ok := chain.(admission.ValidationInterface); ok {
		return validating.Validate(ctx, attributes, interfaces)
	}
	return nil
}

// renew writes renewed where before, but for the time of its renewal, is what
// was written last. It reads nothing: the store compares the versions.
func (r leaseREST) renew(ctx context.Context, before, renewed *coordination.Lease) (*coordination.Lease, error) {
	key, err := r.KeyFunc(ctx, renewed.Name)
	if err != nil {
		return nil, err
	}
	version, written := before.ResourceVersion, &coordination.Lease{}
	err = r.Storage.Storage.GuaranteedUpdate(ctx, key, written, false, nil,
		func(current runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
			if lease, ok := current.(*coordination.Lease); !ok || lease.ResourceVersion != version {
				return nil, nil, errNotRenewal
			}
			return renewed, nil, nil
		}, before)
	if err != nil {
		return nil, err
	}
	r.last.wrote(written)
	return written, nil
}

func decodeLease(body []byte) (*coordinationv1.Lease, error) {
	data, ok := bytes.CutPrefix(body, protobufMark)
	if !ok {
		return nil, errNotRenewal
	}
	var unknown runtime.Unknown
	if err := unknown.Unmarshal(data); err != nil {
		return nil, err
	}
	if unknown.TypeMeta != leaseType || unknown.ContentEncoding != "" || unknown.ContentType != "" {
		return nil, errNotRenewal
	}
	lease := &coordinationv1.Lease{}
	return lease, lease.Unmarshal(unknown.Raw)
}

func encodeLease(lease *coordinationv1.Lease) ([]byte, error) {
	raw, err := lease.Marshal()
	if err != nil {
		return nil, err
	}
	data, err := (&runtime.Unknown{TypeMeta: leaseType, Raw: raw}).Marshal()
	return append(bytes.Clone(protobufMark), data...), err
}
