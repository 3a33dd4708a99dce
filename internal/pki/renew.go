package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// RenewPath is where the server gives a node, who shows its certificate, the
// next one.
const RenewPath = "/legion/v1/renew"

// RenewRequest asks for a node's next certificate. Who asks is told by the
// connection.
type RenewRequest struct {
	// Request is a PEM certificate request; only its key counts.
	Request string `json:"request"`
}

// RenewAnswer is what a node gets.
type RenewAnswer struct {
	// Certificate is PEM.
	Certificate string `json:"certificate"`
}

// RenewAt is when a certificate is to be renewed: after four fifths of its life.
func RenewAt(cert *x509.Certificate) time.Time {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return cert.NotBefore.Add(life * 4 / 5)
}

// StoredCertificate is the one of the credentials in dir.
func StoredCertificate(dir string) (*x509.Certificate, error) {
	certPEM, err := os.ReadFile(filepath.Join(dir, CertFile))
	if err != nil {
		return nil, err
	}
	return ParseCertificate(certPEM)
}

// StoredKey is the key of the credentials in dir.
func StoredKey(dir string) (crypto.Signer, error) {
	keyPEM, err := os.ReadFile(filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	return parseKey(keyPEM)
}

// Renew gets the next certificate for the key that is stored in dir, and keeps
// it there. The key stays, so that key and certificate fit at every moment.
// client shows the server the certificate that is stored.
func Renew(ctx context.Context, client *http.Client, serverURL, dir string) error {
	fail := func(err error) error { return fmt.Errorf("cannot renew the node's certificate: %w", err) }
	key, err := StoredKey(dir)
	if err != nil {
		return fail(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "renewal"}}, key)
	if err != nil {
		return fail(err)
	}
	body, err := json.Marshal(RenewRequest{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	if err != nil {
		return fail(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(serverURL, "/")+RenewPath, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK {
		return fail(refusal(resp, text))
	}
	var answer RenewAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return fail(err)
	}
	if err := Fits([]byte(answer.Certificate), key.Public()); err != nil {
		return fail(err)
	}
	if err := WriteFile(filepath.Join(dir, CertFile), []byte(answer.Certificate), 0o600); err != nil {
		return fail(err)
	}
	return nil
}

// Fits says whether a certificate is for the key.
func Fits(certPEM []byte, public crypto.PublicKey) error {
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return err
	}
	// All keys of the standard library have it.
	own, ok := public.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !own.Equal(cert.PublicKey) {
		return errors.New("the server's answer is a certificate for another key")
	}
	return nil
}
