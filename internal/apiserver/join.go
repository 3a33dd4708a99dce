package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
	"legion.dev/legion/internal/tunnel"
)

// secretGetter is what checking a token needs.
type secretGetter interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Secret, error)
}

// joinHandler gives a certificate to who shows a valid join token.
type joinHandler struct {
	authority *pki.Authority
	sessions  *tunnel.Sessions
	tokens    secretGetter
}

// refusal is an answer with this status.
type refusal struct {
	status  int
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

func (h *joinHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer, err := h.join(r)
	if err == nil {
		_ = json.NewEncoder(w).Encode(answer)
		return
	}
	status := http.StatusInternalServerError
	var known *refusal
	if errors.As(err, &known) {
		status = known.status
	}
	klog.ErrorS(err, "Join refused", "from", r.RemoteAddr, "status", status)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(pki.JoinRefusal{Message: err.Error()})
}

func (h *joinHandler) join(r *http.Request) (*pki.JoinAnswer, error) {
	if r.Method != http.MethodPost {
		return nil, refuse(http.StatusMethodNotAllowed, "a join is asked for with POST, not %s", r.Method)
	}
	var req pki.JoinRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req); err != nil {
		return nil, refuse(http.StatusBadRequest, "the join request is not understood: %v", err)
	}
	if err := h.check(r.Context(), req.Token); err != nil {
		return nil, err
	}
	if problems := validation.IsDNS1123Subdomain(req.Node); len(problems) > 0 {
		return nil, refuse(http.StatusBadRequest, "%q cannot be a node's name: %s", req.Node, strings.Join(problems, "; "))
	}
	if h.sessions.Connected(req.Node) {
		return nil, refuse(http.StatusConflict, "a node %q is connected at this moment: choose another name, or stop that node's agent first", req.Node)
	}
	cert, err := h.authority.SignRequest([]byte(req.Request), "system:node:"+req.Node, user.NodesGroup)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the certificate request is not understood: %v", err)
	}
	return &pki.JoinAnswer{Certificate: string(cert), CA: string(h.authority.PEM)}, nil
}

// check compares the token with the Secret that was kept for it.
func (h *joinHandler) check(ctx context.Context, text string) error {
	const renew = "make a new one with 'legion-server token create'"
	shown, err := token.Parse(text)
	if err != nil {
		return refuse(http.StatusBadRequest, "%v", err)
	}
	if shown.CA != token.HashCA(h.authority.Cert.Raw) {
		return refuse(http.StatusForbidden, "the join token %s was made for a server with another CA: %s on this server", shown.ID, renew)
	}
	secret, err := h.tokens.Get(ctx, shown.SecretName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return refuse(http.StatusForbidden, "the server does not know the join token %s (it was deleted, or is of another fleet): %s", shown.ID, renew)
	}
	if err != nil {
		return fmt.Errorf("cannot check the join token %s: %w", shown.ID, err)
	}
	if string(secret.Type) != token.SecretType || subtle.ConstantTimeCompare(secret.Data[token.FieldSecret], []byte(shown.Secret)) != 1 {
		return refuse(http.StatusForbidden, "the join token %s is wrong: its secret part does not match (was it cut or mistyped?)", shown.ID)
	}
	if end := string(secret.Data[token.FieldExpiration]); end != "" {
		at, err := time.Parse(time.RFC3339, end)
		if err != nil {
			return refuse(http.StatusForbidden, "the join token %s has an end that cannot be read, %q: %s", shown.ID, end, renew)
		}
		if time.Now().After(at) {
			return refuse(http.StatusForbidden, "the join token %s ended at %s: %s", shown.ID, end, renew)
		}
	}
	return nil
}

// CreateToken makes a join token for the server whose CA certificate is caPEM
// and keeps it there. A life of 0 never ends.
func CreateToken(ctx context.Context, client kubernetes.Interface, caPEM []byte, life time.Duration, description string) (token.Token, error) {
	ca, err := pki.ParseCertificate(caPEM)
	if err != nil {
		return token.Token{}, fmt.Errorf("cannot read the fleet's CA: %w", err)
	}
	made, err := token.New(rand.Reader, ca.Raw)
	if err != nil {
		return token.Token{}, err
	}
	fields := map[string]string{
		token.FieldID:                    made.ID,
		token.FieldSecret:                made.Secret,
		token.FieldDescription:           description,
		"usage-bootstrap-authentication": "false",
	}
	if life > 0 {
		fields[token.FieldExpiration] = time.Now().Add(life).UTC().Format(time.RFC3339)
	}
	_, err = client.CoreV1().Secrets(token.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: made.SecretName(), Namespace: token.Namespace},
		Type:       token.SecretType,
		StringData: fields,
	}, metav1.CreateOptions{})
	if err != nil {
		return token.Token{}, fmt.Errorf("cannot keep the join token on the server: %w", err)
	}
	return made, nil
}

// tunnelHandler takes the tunnel of the node that the client certificate names.
func tunnelHandler(sessions *tunnel.Sessions) http.Handler {
	identifier := nodeidentifier.NewDefaultNodeIdentifier()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := request.UserFrom(r.Context())
		if !ok {
			http.Error(w, "nobody is known to ask for this tunnel", http.StatusUnauthorized)
			return
		}
		node, isNode := identifier.NodeIdentity(who)
		if !isNode || node == "" {
			http.Error(w, fmt.Sprintf("only nodes have a tunnel, and %q is none", who.GetName()), http.StatusForbidden)
			return
		}
		sessions.Accept(w, r, node)
	})
}
