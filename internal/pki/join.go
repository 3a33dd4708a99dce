package pki

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"legion.dev/legion/internal/token"
)

// JoinPath is where the server takes join requests.
const JoinPath = "/legion/v1/join"

// JoinRequest asks for a node's client certificate.
type JoinRequest struct {
	// Node is the name the node will have.
	Node string `json:"node"`
	// Request is a PEM certificate request; only its key counts.
	Request string `json:"request"`
	// Token is a whole join token.
	Token string `json:"token"`
}

// JoinAnswer is what a node gets.
type JoinAnswer struct {
	// Certificate is PEM: user system:node:NAME, group system:nodes.
	Certificate string `json:"certificate"`
	// CA is the fleet's CA, PEM.
	CA string `json:"ca"`
}

// JoinRefusal is the body of a refused request.
type JoinRefusal struct {
	// Message says why, and what to do.
	Message string `json:"message"`
}

// RefusedError says that the server refuses the request, or is not the one that
// the token names: asking again will not help.
type RefusedError struct{ Message string }

func (e *RefusedError) Error() string { return e.Message }

// Credentials are what a node authenticates with; all PEM.
type Credentials struct {
	Certificate, Key, CA []byte
}

// Join gets credentials for node from the server at serverURL with a join token.
// The server is believed only if its certificate is signed by the CA that the
// token names. The error is a *RefusedError if the server refuses, or is another one.
func Join(ctx context.Context, serverURL, joinToken, node string) (Credentials, error) {
	parsed, err := token.Parse(joinToken)
	if err != nil {
		return Credentials{}, err
	}
	answer, keyPEM, err := join(ctx, serverURL, parsed, node)
	if err != nil {
		return Credentials{}, fmt.Errorf("node %q cannot join the fleet at %s: %w", node, serverURL, err)
	}
	return Credentials{Certificate: []byte(answer.Certificate), Key: keyPEM, CA: []byte(answer.CA)}, nil
}

func join(ctx context.Context, serverURL string, parsed token.Token, node string) (JoinAnswer, []byte, error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return JoinAnswer{}, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}, key)
	if err != nil {
		return JoinAnswer{}, nil, err
	}
	request := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	body, err := json.Marshal(JoinRequest{Node: node, Request: request, Token: parsed.String()})
	if err != nil {
		return JoinAnswer{}, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(serverURL, "/")+JoinPath, bytes.NewReader(body))
	if err != nil {
		return JoinAnswer{}, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: pinned(parsed.CA), DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return JoinAnswer{}, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return JoinAnswer{}, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return JoinAnswer{}, nil, refusal(resp, text)
	}
	var answer JoinAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return JoinAnswer{}, nil, fmt.Errorf("the server's answer is not understood: %w", err)
	}
	ca, err := ParseCertificate([]byte(answer.CA))
	if err != nil || token.HashCA(ca.Raw) != parsed.CA {
		return JoinAnswer{}, nil, errors.New("the server's answer holds another CA than the join token names")
	}
	return answer, keyPEM, nil
}

func refusal(resp *http.Response, text []byte) error {
	var known JoinRefusal
	if json.Unmarshal(text, &known) == nil && known.Message != "" {
		// A conflict is another agent of that name, which may go away.
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusConflict {
			return &RefusedError{Message: known.Message}
		}
		return errors.New(known.Message)
	}
	return fmt.Errorf("the server answered %s: %.200s", resp.Status, strings.TrimSpace(string(text)))
}

// pinned believes a server whose chain ends in the CA with this hash.
func pinned(caHash string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		// VerifyConnection does it, with the CA that the token names.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, cert := range state.PeerCertificates {
				if token.HashCA(cert.Raw) != caHash {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(cert)
				_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: state.ServerName})
				return err
			}
			return &RefusedError{Message: "the server is not the one the join token was made for: its certificate is signed by another CA (another fleet, or a server set up anew: make a new token with 'legion-server token create')"}
		},
	}
}
