package pki

import (
	"bytes"
	"context"
	"crypto"
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
	// Time is what the node's clock says.
	Time time.Time `json:"time,omitzero"`
}

// JoinAnswer is what a node gets.
type JoinAnswer struct {
	// Certificate is PEM: user system:node:NAME, group system:nodes.
	Certificate string `json:"certificate"`
	// CA is the fleet's CA, PEM.
	CA string `json:"ca"`
	// Labels are those that the token gives to its nodes.
	Labels map[string]string `json:"labels,omitempty"`
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

// TakenError says that a node of that name is there now. It may go away.
type TakenError struct{ Message string }

func (e *TakenError) Error() string { return e.Message }

// ClockTolerance is by how much the clocks of a node and of its server may
// differ when it joins.
const ClockTolerance = 5 * time.Minute

// Join gets credentials for node from the server at serverURL with a join token.
// The server is believed only if its certificate is signed by the CA that the
// token names. The error is a *RefusedError if the server refuses, or is another
// one, and a *TakenError if a node of that name is there.
func Join(ctx context.Context, serverURL, joinToken, node string) (Credentials, error) {
	request, err := NewJoin(joinToken, node)
	if err != nil {
		return Credentials{}, err
	}
	return request.Send(ctx, serverURL)
}

// Joining is a node's request to join. A token that is good for one node is good
// for sending the same request again.
type Joining struct {
	token  token.Token
	node   string
	key    crypto.Signer
	keyPEM []byte
}

// NewJoin makes a key for the node.
func NewJoin(joinToken, node string) (*Joining, error) {
	parsed, err := token.Parse(joinToken)
	if err != nil {
		return nil, err
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, err
	}
	return &Joining{parsed, node, key, keyPEM}, nil
}

// Send is what Join does.
func (j *Joining) Send(ctx context.Context, serverURL string) (Credentials, error) {
	answer, err := j.send(ctx, serverURL)
	if err != nil {
		return Credentials{}, fmt.Errorf("node %q cannot join the fleet at %s: %w", j.node, serverURL, err)
	}
	return Credentials{Certificate: []byte(answer.Certificate), Key: j.keyPEM, CA: []byte(answer.CA), Labels: answer.Labels}, nil
}

func (j *Joining) send(ctx context.Context, serverURL string) (JoinAnswer, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: j.node}}, j.key)
	if err != nil {
		return JoinAnswer{}, err
	}
	request := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	body, err := json.Marshal(JoinRequest{Node: j.node, Request: request, Token: j.token.String(), Time: time.Now()})
	if err != nil {
		return JoinAnswer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(serverURL, "/")+JoinPath, bytes.NewReader(body))
	if err != nil {
		return JoinAnswer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: pinned(j.token.CA, time.Now), DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Do(req)
	if err != nil {
		return JoinAnswer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return JoinAnswer{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return JoinAnswer{}, refusal(resp, text)
	}
	var answer JoinAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return JoinAnswer{}, fmt.Errorf("the server's answer is not understood: %w", err)
	}
	ca, err := ParseCertificate([]byte(answer.CA))
	if err != nil || token.HashCA(ca.Raw) != j.token.CA {
		return JoinAnswer{}, errors.New("the server's answer holds another CA than the join token names")
	}
	return answer, nil
}

func refusal(resp *http.Response, text []byte) error {
	var known JoinRefusal
	if json.Unmarshal(text, &known) == nil && known.Message != "" {
		if resp.StatusCode == http.StatusConflict {
			return &TakenError{Message: known.Message}
		}
		if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return &RefusedError{Message: known.Message}
		}
		return errors.New(known.Message)
	}
	return fmt.Errorf("the server answered %s: %.200s", resp.Status, strings.TrimSpace(string(text)))
}

// pinned believes a server whose chain ends in the CA with this hash.
func pinned(caHash string, now func() time.Time) *tls.Config {
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
				_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: state.ServerName, CurrentTime: now()})
				return clockOff(err, now())
			}
			return &RefusedError{Message: "the server is not the one the join token was made for: its certificate is signed by another CA (another fleet, or a server set up anew: make a new token with 'legion token create')"}
		},
	}
}

// clockOff tells a certificate that is out of its time from others that are
// wrong: it is this host's clock that is.
func clockOff(err error, now time.Time) error {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || invalid.Reason != x509.Expired {
		return err
	}
	return &RefusedError{Message: fmt.Sprintf("the clock of this host is off: it says %s, and the server's certificate is good from %s to %s; set the clock, then join again",
		now.UTC().Format(time.RFC3339), invalid.Cert.NotBefore.Format(time.RFC3339), invalid.Cert.NotAfter.Format(time.RFC3339))}
}
