package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
)

// reviews are the cluster's answers to who somebody is and what they may do.
type reviews interface {
	// Token says whose token it is.
	Token(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error)
	// Access says whether the cluster's rules allow it.
	Access(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (authorizationv1.SubjectAccessReviewStatus, error)
}

// gate lets those reach the node's handlers who may, as a kubelet does whose
// authentication is by X.509 and webhook, and whose authorization is by webhook
// (pkg/kubelet/server/auth.go). Nobody is anonymous.
type gate struct {
	node    string
	reviews reviews
	next    http.Handler
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, err := g.user(r)
	if err != nil {
		http.Error(w, "Unauthorized: "+err.Error(), http.StatusUnauthorized)
		return
	}
	verb, subresources := verbOf(r.Method), subresourcesOf(r.URL.Path)
	for _, sub := range subresources {
		answer, err := g.reviews.Access(r.Context(), authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra(user),
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: g.node},
		})
		if err != nil {
			http.Error(w, fmt.Sprintf("Authorization error: the cluster does not say what %s may do: %v", user.Username, err), http.StatusInternalServerError)
			return
		}
		if answer.Allowed && !answer.Denied {
			g.next.ServeHTTP(w, r)
			return
		}
	}
	http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", user.Username, verb, subresources), http.StatusForbidden)
}

// user says who asks: by a client certificate, which the handshake has verified,
// else by a token of the cluster's.
func (g *gate) user(r *http.Request) (authenticationv1.UserInfo, error) {
	if name, groups := certified(r.TLS); name != "" {
		return authenticationv1.UserInfo{Username: name, Groups: append(groups, "system:authenticated")}, nil
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); !strings.EqualFold(scheme, "Bearer") || token == "" {
		return authenticationv1.UserInfo{}, errors.New("neither a client certificate nor a token was shown")
	}
	answer, err := g.reviews.Token(r.Context(), token)
	switch {
	case err != nil:
		return authenticationv1.UserInfo{}, fmt.Errorf("the cluster does not say whose token it is: %w", err)
	case !answer.Authenticated:
		return authenticationv1.UserInfo{}, errors.New("the cluster does not know the token")
	}
	return answer.User, nil
}

// certified is whom a verified client certificate names.
func certified(state *tls.ConnectionState) (name string, groups []string) {
	if state == nil || len(state.VerifiedChains) == 0 {
		return "", nil
	}
	subject := state.VerifiedChains[0][0].Subject
	return subject.CommonName, subject.Organization
}

func extra(user authenticationv1.UserInfo) map[string]authorizationv1.ExtraValue {
	out := map[string]authorizationv1.ExtraValue{}
	for key, values := range user.Extra {
		out[key] = authorizationv1.ExtraValue(values)
	}
	return out
}

func verbOf(method string) string {
	return map[string]string{
		http.MethodPost: "create", http.MethodGet: "get", http.MethodPut: "update",
		http.MethodPatch: "patch", http.MethodDelete: "delete",
	}[method]
}

// subresourcesOf are the subresources of the node of which one must be allowed.
func subresourcesOf(path string) []string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	switch first {
	case "pods", "runningpods":
		return []string{"pods", "proxy"}
	case "healthz":
		return []string{"healthz", "proxy"}
	case "stats", "metrics":
		return []string{first}
	}
	return []string{"proxy"}
}

// reviewer asks the API server.
type reviewer struct{ authentication, authorization *rest.RESTClient }

func newReviewer(config *rest.Config) (*reviewer, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(authenticationv1.AddToScheme(scheme))
	utilruntime.Must(authorizationv1.AddToScheme(scheme))
	base := rest.CopyConfig(config)
	base.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	base.ContentType, base.APIPath, base.QPS = runtime.ContentTypeProtobuf, "/apis", -1
	client := func(version schema.GroupVersion) (*rest.RESTClient, error) {
		config := rest.CopyConfig(base)
		config.GroupVersion = &version
		return rest.RESTClientFor(config)
	}
	authentication, err1 := client(authenticationv1.SchemeGroupVersion)
	authorization, err2 := client(authorizationv1.SchemeGroupVersion)
	return &reviewer{authentication, authorization}, errors.Join(err1, err2)
}

func (r *reviewer) Token(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	out := &authenticationv1.TokenReview{}
	err := r.authentication.Post().Resource("tokenreviews").Timeout(callTimeout).
		Body(&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}).Do(ctx).Into(out)
	return out.Status, err
}

func (r *reviewer) Access(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (authorizationv1.SubjectAccessReviewStatus, error) {
	out := &authorizationv1.SubjectAccessReview{}
	err := r.authorization.Post().Resource("subjectaccessreviews").Timeout(callTimeout).
		Body(&authorizationv1.SubjectAccessReview{Spec: spec}).Do(ctx).Into(out)
	return out.Status, err
}
