// Package token reads and writes join tokens: what a new node shows to the
// server, and by which it knows the server.
package token

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// Prefix begins every token of this form.
const Prefix = "legion1"

// SecretType, SecretPrefix and Namespace say where the server keeps a token: as
// a Secret of upstream's type, named SecretPrefix and the token's ID.
const (
	SecretType   = "bootstrap.kubernetes.io/token"
	SecretPrefix = "bootstrap-token-"
	Namespace    = "kube-system"
)

// The fields of that Secret.
const (
	FieldID          = "token-id"
	FieldSecret      = "token-secret"
	FieldExpiration  = "expiration"
	FieldDescription = "description"
	// FieldUses is how many nodes may join with it; without it, any number.
	FieldUses = "uses"
	// FieldUsedBy has a line "NODE KEY TIME" for each that has, where FieldUses
	// is set: the SHA-256 of its public key in hex, and when, by RFC 3339.
	FieldUsedBy = "used-by"
	// FieldLabels are the labels of the nodes that join with it, "KEY=VALUE,…".
	FieldLabels = "node-labels"
)

const (
	letters      = "abcdefghijklmnopqrstuvwxyz0123456789"
	idLength     = 6
	secretLength = 16
)

// Token is a join token.
type Token struct {
	// ID names the token and is no secret; Secret proves it.
	ID, Secret string
	// CA is the SHA-256 of the DER form of the server's CA certificate, in
	// lower case hex.
	CA string
}

var form = regexp.MustCompile(`^` + Prefix + `\.([a-z0-9]{6})\.([a-z0-9]{16})\.([0-9a-f]{64})$`)

// Parse reads the text form legion1.ID.SECRET.CA.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return Token{}, errors.New("the join token is empty: make one with 'legion token create'")
	}
	if m := form.FindStringSubmatch(text); m != nil {
		return Token{ID: m[1], Secret: m[2], CA: m[3]}, nil
	}
	if head, _, _ := strings.Cut(text, "."); head != Prefix {
		return Token{}, fmt.Errorf("not a join token: it does not begin with %q", Prefix+".")
	}
	return Token{}, fmt.Errorf("the join token is damaged: it must be %s.ID.SECRET.HASH of 6, 16 and 64 characters (was it cut when copied?)", Prefix)
}

// New makes a token for the server with this CA certificate (DER), with
// randomness from random.
func New(random io.Reader, caDER []byte) (Token, error) {
	text, err := draw(random, idLength+secretLength)
	if err != nil {
		return Token{}, fmt.Errorf("cannot make a join token: %w", err)
	}
	return Token{ID: text[:idLength], Secret: text[idLength:], CA: HashCA(caDER)}, nil
}

// draw picks n letters with equal chance.
func draw(random io.Reader, n int) (string, error) {
	const limit = 256 - 256%len(letters)
	out := make([]byte, 0, n)
	buf := make([]byte, 1)
	for len(out) < n {
		if _, err := io.ReadFull(random, buf); err != nil {
			return "", err
		}
		if int(buf[0]) < limit {
			out = append(out, letters[int(buf[0])%len(letters)])
		}
	}
	return string(out), nil
}

// HashCA is the form in which a token names a CA certificate (DER).
func HashCA(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// String is the text form, secret included.
func (t Token) String() string {
	return Prefix + "." + t.ID + "." + t.Secret + "." + t.CA
}

// SecretName is the name of the Secret that keeps the token.
func (t Token) SecretName() string { return SecretPrefix + t.ID }
