// Package pki holds the fleet's certificates: the CA that the server keeps, what
// it signs, and how a node gets its certificate with a join token.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// renewal is how long before its end a certificate on disk is replaced.
	renewal = 30 * 24 * time.Hour
	// skew is by how much clocks may differ.
	skew = time.Hour
)

// LongestLife is how long a certificate of a client is good for.
const LongestLife = leafLife

// RemovedWords begin what a node is told whose certificate is refused because it
// was removed; they take its name.
const RemovedWords = "node %q was removed from the fleet"

// IssuedAt is when a certificate was made; it is good from a little before.
func IssuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(skew) }

// Authority is a CA with its key.
type Authority struct {
	Cert *x509.Certificate
	// PEM is the certificate.
	PEM []byte
	key crypto.Signer
}

// OpenAuthority reads the CA kept in dir as ca.crt and ca.key, or makes it where
// neither exists.
func OpenAuthority(dir string) (*Authority, error) {
	certPath, keyPath := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	certPEM, certErr := os.ReadFile(certPath)
	keyPEM, keyErr := os.ReadFile(keyPath)
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		return newAuthority(dir, certPath, keyPath)
	case certErr != nil || keyErr != nil:
		return nil, fmt.Errorf("cannot read the fleet's CA (the other half exists; restore the missing file from a backup): %w", errors.Join(certErr, keyErr))
	}
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot read the fleet's CA %s: %w", certPath, err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot read the key of the fleet's CA %s: %w", keyPath, err)
	}
	return &Authority{Cert: cert, PEM: certPEM, key: key}, nil
}

func newAuthority(dir, certPath, keyPath string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the fleet's CA: %w", err)
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, fmt.Errorf("cannot make the fleet's CA: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "legion-ca"},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	certPEM, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("cannot make the fleet's CA: %w", err)
	}
	if err := errors.Join(WriteFile(keyPath, keyPEM, 0o600), WriteFile(certPath, certPEM, 0o644)); err != nil {
		return nil, fmt.Errorf("cannot keep the fleet's CA: %w", err)
	}
	cert, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, PEM: certPEM, key: key}, nil
}

// Server keeps NAME.crt (with the CA behind it) and NAME.key in dir, for a TLS
// server under the given names and addresses. They are made anew where they
// name fewer, end soon, or are of another CA.
func (a *Authority) Server(dir, name string, hosts []string) error {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	covers := func(cert *x509.Certificate) bool {
		for _, name := range template.DNSNames {
			if !slices.Contains(cert.DNSNames, name) {
				return false
			}
		}
		for _, ip := range template.IPAddresses {
			if !slices.ContainsFunc(cert.IPAddresses, ip.Equal) {
				return false
			}
		}
		return true
	}
	return a.keep(dir, name, template, covers, true)
}

// Client keeps NAME.crt and NAME.key in dir, for a client that is user and in
// groups.
func (a *Authority) Client(dir, name, user string, groups ...string) error {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	return a.keep(dir, name, template, func(*x509.Certificate) bool { return true }, false)
}

// SignRequest signs the key of a certificate request for a client that is user
// and in groups; all else in the request is left out.
func (a *Authority) SignRequest(requestPEM []byte, user string, groups ...string) ([]byte, error) {
	block, _ := pem.Decode(requestPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("no PEM block CERTIFICATE REQUEST")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, err
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, request.PublicKey)
}

func (a *Authority) keep(dir, name string, template *x509.Certificate, fits func(*x509.Certificate) bool, chain bool) error {
	certPath, keyPath := filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	if certPEM, err := os.ReadFile(certPath); err == nil {
		cert, err := ParseCertificate(certPEM)
		_, keyErr := os.Stat(keyPath)
		if err == nil && keyErr == nil && cert.CheckSignatureFrom(a.Cert) == nil &&
			time.Until(cert.NotAfter) > renewal && fits(cert) {
			return nil
		}
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return fmt.Errorf("cannot make the certificate %s: %w", certPath, err)
	}
	certPEM, err := a.issue(template, key.Public())
	if err != nil {
		return fmt.Errorf("cannot make the certificate %s: %w", certPath, err)
	}
	if chain {
		certPEM = append(certPEM, a.PEM...)
	}
	if err := errors.Join(WriteFile(keyPath, keyPEM, 0o600), WriteFile(certPath, certPEM, 0o644)); err != nil {
		return fmt.Errorf("cannot keep the certificate %s: %w", certPath, err)
	}
	return nil
}

func (a *Authority) issue(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	now := time.Now()
	template.NotBefore = now.Add(-skew)
	template.NotAfter = now.Add(leafLife)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return sign(template, a.Cert, public, a.key)
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// NewKey makes an ECDSA P-256 key; the second result is its PEM form.
func NewKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// KeepKey makes a key at path unless there is one.
func KeepKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	_, keyPEM, err := NewKey()
	if err == nil {
		err = WriteFile(path, keyPEM, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot make the key %s: %w", path, err)
	}
	return nil
}

func parseKey(keyPEM []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(keyPEM)
	if block == nil || block.Type != "EC PRIVATE KEY" {
		return nil, errors.New("no PEM block EC PRIVATE KEY")
	}
	return x509.ParseECPrivateKey(block.Bytes)
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(certPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM block CERTIFICATE")
	}
	return x509.ParseCertificate(block.Bytes)
}

// WriteFile replaces the file at path in one step, so that no reader and no
// crash sees half of it.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.Write(data)
	err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close())
	if err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
