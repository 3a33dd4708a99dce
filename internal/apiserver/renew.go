package apiserver

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"

	"legion.dev/legion/internal/pki"
)

// renewHandler gives a node that shows its certificate the next one.
type renewHandler struct{ authority *pki.Authority }

func (h renewHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer, err := h.renew(r)
	if err == nil {
		_ = json.NewEncoder(w).Encode(answer)
		return
	}
	status := http.StatusInternalServerError
	var known *refusal
	if errors.As(err, &known) {
		status = known.status
	}
	klog.ErrorS(err, "Renewal refused", "from", r.RemoteAddr, "status", status)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(pki.JoinRefusal{Message: err.Error()})
}

func (h renewHandler) renew(r *http.Request) (*pki.RenewAnswer, error) {
	if r.Method != http.MethodPost {
		return nil, refuse(http.StatusMethodNotAllowed, "a certificate is asked for with POST, not %s", r.Method)
	}
	who, ok := request.UserFrom(r.Context())
	if !ok {
		return nil, refuse(http.StatusUnauthorized, "nobody is known to ask for this certificate")
	}
	node, isNode := nodeidentifier.NewDefaultNodeIdentifier().NodeIdentity(who)
	if !isNode || node == "" || !byCertificate(who) {
		return nil, refuse(http.StatusForbidden, "only a node that shows its certificate gets the next one, and %q does not", who.GetName())
	}
	var req pki.RenewRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 64<<10)).Decode(&req); err != nil {
		return nil, refuse(http.StatusBadRequest, "the request is not understood: %v", err)
	}
	cert, err := h.authority.SignRequest([]byte(req.Request), "system:node:"+node, user.NodesGroup)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the certificate request is not understood: %v", err)
	}
	return &pki.RenewAnswer{Certificate: string(cert)}, nil
}
