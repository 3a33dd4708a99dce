package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	unversionedvalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	metav1labels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
	"legion.dev/legion/internal/tunnel"
)

// secretStore is what checking a token, and noting its use, needs.
type secretStore interface {
	Get(ctx context.Context, name string, options metav1.GetOptions) (*corev1.Secret, error)
	Update(ctx context.Context, secret *corev1.Secret, options metav1.UpdateOptions) (*corev1.Secret, error)
}

// joinHandler gives a certificate to who shows a valid join token.
type joinHandler struct {
	authority *pki.Authority
	sessions  *tunnel.Sessions
	tokens    secretStore
	removed   *removedNodes
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
	answer, err := h.join(r)
	reply(w, r, "Join refused", answer, err)
}

// reply sends the answer, or the reason of a refusal.
func reply(w http.ResponseWriter, r *http.Request, refused string, answer any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		_ = json.NewEncoder(w).Encode(answer)
		return
	}
	status := http.StatusInternalServerError
	var known *refusal
	if errors.As(err, &known) {
		status = known.status
	}
	klog.ErrorS(err, refused, "from", r.RemoteAddr, "status", status)
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
	if err := checkClock(req.Time, time.Now()); err != nil {
		return nil, err
	}
	if _, err := h.check(r.Context(), req.Token); err != nil {
		return nil, err
	}
	if problems := validation.IsDNS1123Subdomain(req.Node); len(problems) > 0 {
		return nil, refuse(http.StatusBadRequest, "%q cannot be a node's name: %s", req.Node, strings.Join(problems, "; "))
	}
	if h.sessions.Reaches(r.Context(), req.Node) {
		return nil, refuse(http.StatusConflict, "a node %q is connected at this moment: choose another name, or stop that node's agent first", req.Node)
	}
	// A certificate is dated by the second; it must be newer than the removal.
	select {
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-time.After(time.Until(h.removed.since(req.Node))):
	}
	cert, err := h.authority.SignRequest([]byte(req.Request), "system:node:"+req.Node, user.NodesGroup)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the certificate request is not understood: %v", err)
	}
	secret, err := h.use(r.Context(), req.Token, req.Node, cert)
	if err != nil {
		return nil, err
	}
	return &pki.JoinAnswer{Certificate: string(cert), CA: string(h.authority.PEM), Labels: parseLabels(string(secret.Data[token.FieldLabels]))}, nil
}

// checkClock refuses a node whose clock is off: its certificate, its leases and
// its logs would be of another time. An older agent does not tell.
func checkClock(its, ours time.Time) error {
	if its.IsZero() {
		return nil
	}
	off, word := its.Sub(ours), "ahead of"
	if off < 0 {
		off, word = -off, "behind"
	}
	if off <= pki.ClockTolerance {
		return nil
	}
	return refuse(http.StatusBadRequest, "the clock of this host is off: it says %s and is %s %s the server's; set it, then join again",
		its.UTC().Format(time.RFC3339), off.Round(time.Second), word)
}

const renew = "make a new one with 'legion token create'"

// check compares the token with the Secret that was kept for it.
func (h *joinHandler) check(ctx context.Context, text string) (*corev1.Secret, error) {
	shown, err := token.Parse(text)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if shown.CA != token.HashCA(h.authority.Cert.Raw) {
		return nil, refuse(http.StatusForbidden, "the join token %s was made for a server with another CA: %s on this server", shown.ID, renew)
	}
	secret, err := h.tokens.Get(ctx, shown.SecretName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, refuse(http.StatusForbidden, "the server does not know the join token %s (it was deleted, or is of another fleet): %s", shown.ID, renew)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot check the join token %s: %w", shown.ID, err)
	}
	if string(secret.Type) != token.SecretType || subtle.ConstantTimeCompare(secret.Data[token.FieldSecret], []byte(shown.Secret)) != 1 {
		return nil, refuse(http.StatusForbidden, "the join token %s is wrong: its secret part does not match (was it cut or mistyped?)", shown.ID)
	}
	if end := string(secret.Data[token.FieldExpiration]); end != "" {
		at, err := time.Parse(time.RFC3339, end)
		if err != nil {
			return nil, refuse(http.StatusForbidden, "the join token %s has an end that cannot be read, %q: %s", shown.ID, end, renew)
		}
		if time.Now().After(at) {
			return nil, refuse(http.StatusForbidden, "the join token %s ended at %s: %s", shown.ID, end, renew)
		}
	}
	return secret, nil
}

// use notes that node has joined with the token, where the token counts. The
// same node with the same key may ask again: it may not have got the answer.
func (h *joinHandler) use(ctx context.Context, text, node string, certPEM []byte) (*corev1.Secret, error) {
	cert, err := pki.ParseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	key := hex.EncodeToString(sum[:])
	for {
		secret, err := h.check(ctx, text)
		if err != nil {
			return nil, err
		}
		most := string(secret.Data[token.FieldUses])
		if most == "" {
			return secret, nil
		}
		used := strings.TrimSpace(string(secret.Data[token.FieldUsedBy]))
		lines := slices.DeleteFunc(strings.Split(used, "\n"), func(line string) bool { return line == "" })
		if slices.ContainsFunc(lines, func(line string) bool { return strings.HasPrefix(line, node+" "+key+" ") }) {
			return secret, nil
		}
		if n, err := strconv.Atoi(most); err != nil || len(lines) >= n {
			return nil, refuse(http.StatusForbidden, "the join token was used already%s: %s", usedBy(lines), renew)
		}
		secret = secret.DeepCopy()
		secret.Data[token.FieldUsedBy] = []byte(strings.Join(append(lines, node+" "+key+" "+time.Now().UTC().Format(time.RFC3339)), "\n"))
		if _, err = h.tokens.Update(ctx, secret, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			return secret, err
		}
	}
}

// usedBy says who has used a token last.
func usedBy(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	words := strings.Fields(lines[len(lines)-1])
	if len(words) != 3 {
		return ""
	}
	return fmt.Sprintf(" (by node %q at %s)", words[0], words[2])
}

// parseLabels reads "KEY=VALUE,…".
func parseLabels(text string) map[string]string {
	labels, err := metav1labels.ConvertSelectorToLabelsMap(text)
	if err != nil {
		return nil
	}
	return labels
}

// NewToken says what a join token is to be good for.
type NewToken struct {
	// Life 0 never ends.
	Life time.Duration
	// Uses is how many nodes may join with it; 0 is any number.
	Uses int
	// Labels are given to these nodes.
	Labels      map[string]string
	Description string
}

func (n NewToken) check() error {
	if n.Life < 0 {
		return fmt.Errorf("a token cannot end before it begins: %s", n.Life)
	}
	if n.Uses < 0 {
		return fmt.Errorf("a token cannot be good for %d nodes", n.Uses)
	}
	if err := unversionedvalidation.ValidateLabels(n.Labels, nil).ToAggregate(); err != nil {
		return fmt.Errorf("a node cannot have these labels: %w", err)
	}
	for key := range n.Labels {
		prefix, _, _ := strings.Cut(key, "/")
		foreign := prefix != "kubernetes.io" && prefix != "k8s.io" && !strings.HasSuffix(prefix, ".kubernetes.io") && !strings.HasSuffix(prefix, ".k8s.io")
		if !foreign && !kubeletapis.IsKubeletLabel(key) {
			return fmt.Errorf("a node may not give itself the label %s (NodeRestriction): set it with kubectl label", key)
		}
	}
	return nil
}

// CreateToken makes a join token for the server whose CA certificate is caPEM
// and keeps it there.
func CreateToken(ctx context.Context, client kubernetes.Interface, caPEM []byte, wanted NewToken) (token.Token, error) {
	if err := wanted.check(); err != nil {
		return token.Token{}, err
	}
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
		token.FieldDescription:           wanted.Description,
		"usage-bootstrap-authentication": "false",
	}
	if wanted.Life > 0 {
		fields[token.FieldExpiration] = time.Now().Add(wanted.Life).UTC().Format(time.RFC3339)
	}
	if wanted.Uses > 0 {
		fields[token.FieldUses] = strconv.Itoa(wanted.Uses)
	}
	if len(wanted.Labels) > 0 {
		fields[token.FieldLabels] = metav1labels.FormatLabels(wanted.Labels)
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
