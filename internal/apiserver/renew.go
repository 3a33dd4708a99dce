package apiserver

import (
	"encoding/json"
	"io"
	"net/http"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"

	"legion.dev/legion/internal/pki"
)

// renewHandler gives a node that shows its certificate the next one.
type renewHandler struct{ authority *pki.Authority }

func (h renewHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, err := h.renew(r)
	reply(w, r, "Renewal refused", answer, err)
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
