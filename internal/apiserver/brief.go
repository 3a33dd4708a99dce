package apiserver

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

// briefly is the way of what nodes write about their pods: a patch of a status,
// and that a pod which was stopped is gone. Of the filters of the general way it
// has those that decide, who asks and whether that is allowed; the others, which
// are for browsers, tokens, audits, traces and the like, would each make a copy
// of the request, and together as much garbage as the write itself.
type briefly struct {
	config *genericapiserver.Config
	// handler is what both ways lead to.
	handler http.Handler
	// general is the way of all else.
	general http.Handler
}

// ServeHTTP lets through what is a node's write for sure, and allowed.
func (b *briefly) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !looksLikeNodesWrite(r) || b.config.NonLongRunningRequestWaitGroup.Add(1) != nil {
		b.general.ServeHTTP(w, r)
		return
	}
	defer b.config.NonLongRunningRequestWaitGroup.Done()
	deepen()
	info, err := b.config.RequestInfoResolver.NewRequestInfo(r)
	if err != nil {
		b.general.ServeHTTP(w, r)
		return
	}
	ctx := request.WithReceivedTimestamp(request.WithRequestInfo(r.Context(), info), time.Now())
	who, err := mayWrite(ctx, b.config, r, info)
	if err != nil {
		b.general.ServeHTTP(w, r)
		return
	}
	// Nothing is audited, but upstream's handlers of patches need what would be.
	ctx, cancel := context.WithTimeout(request.WithUser(audit.WithAuditContext(ctx), who), directTime)
	defer cancel()
	w.Header().Set("Cache-Control", "no-cache, private")
	r = r.WithContext(ctx)
	if r.Method == http.MethodPatch {
		// Upstream would look for fields that it does not know, for warnings, which
		// this way has not.
		u := *r.URL
		u.RawQuery = unknownFieldsIgnored
		r.URL = &u
	}
	b.handler.ServeHTTP(w, r)
}

var unknownFieldsIgnored = url.Values{"fieldValidation": {metav1.FieldValidationIgnore}}.Encode()

// deepen makes the stack of a new goroutine as large at once as a request needs
// it (32 KiB). It would grow there in four steps else, each of which copies what
// there is, while much is there.
//
//go:noinline
func deepen() byte {
	var room [16 << 10]byte
	return room[time.Now().Nanosecond()&1023]
}

// looksLikeNodesWrite says, by its head, whether a request may be a node's write
// about one of its pods.
func looksLikeNodesWrite(r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/")
	if !ok || r.URL.RawQuery != "" {
		return false
	}
	_, rest, ok = strings.Cut(rest, "/pods/")
	name, subresource, _ := strings.Cut(rest, "/")
	kind := r.Header.Get("Content-Type")
	switch {
	case !ok || name == "":
		return false
	case r.Method == http.MethodPatch && subresource == "status" && kind == string(types.StrategicMergePatchType):
	case r.Method == http.MethodDelete && subresource == "" && kind == protobufType:
	default:
		return false
	}
	return protobufFirst(r.Header.Get("Accept")) && byCertificateAlone(r)
}

// byCertificateAlone says whether nothing but a client certificate can say who
// asks, and for whom.
func byCertificateAlone(r *http.Request) bool {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return false
	}
	for key := range r.Header {
		if key == "Authorization" || strings.HasPrefix(key, "Impersonate-") {
			return false
		}
	}
	return true
}

func protobufFirst(accept string) bool {
	first, _, _ := strings.Cut(accept, ",")
	return first == protobufType
}

// errAskGeneral says that the general way has to say why something is refused.
var errAskGeneral = errors.New("not allowed here")

// mayWrite says who asks, if what is asked for is allowed.
func mayWrite(ctx context.Context, config *genericapiserver.Config, r *http.Request, info *request.RequestInfo) (user.Info, error) {
	who, ok, err := config.Authentication.Authenticator.AuthenticateRequest(r)
	if err != nil || !ok {
		return nil, errors.Join(errAskGeneral, err)
	}
	decision, _, err := config.Authorization.Authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: who.User, Verb: info.Verb, Namespace: info.Namespace, Name: info.Name, ResourceRequest: true, Path: r.URL.Path,
		APIGroup: info.APIGroup, APIVersion: info.APIVersion, Resource: info.Resource, Subresource: info.Subresource,
	})
	if err != nil || decision != authorizer.DecisionAllow {
		return nil, errors.Join(errAskGeneral, err)
	}
	return who.User, nil
}
