package pods

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/netns"
	"legion.dev/legion/test/standin/standinimage"
)

// pulled is the image of a manifest that says imagePullPolicy: Always, so that
// one that was imported will not do.
const pulled = "gcr.io/k8s-staging-nfd/node-feature-discovery:master"

// sourceHost is the registry's name, played by the test's own in the node's
// network namespace, which has no way out.
const sourceHost = "gcr.io"

// privateHost is the registry's other name, by which it wants a login.
const privateHost = "private.example"

// privateImage is one that only those with the login get.
const privateImage, privateUser, privatePassword = privateHost + "/app:v1", "reader", "open sesame"

// source is a registry.
type source struct {
	handler http.Handler
	// inside is where images are pushed.
	inside      *httptest.Server
	certificate tls.Certificate
}

// newSource makes a registry that the machine trusts for as long as the test
// runs: /etc is a layer of its own.
func newSource() (*source, error) {
	open := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := &source{handler: withLogin(open), inside: httptest.NewServer(open)}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{sourceHost, privateHost}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	s.certificate = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	const roots = "/etc/ssl/certs/ca-certificates.crt" // where Go looks first
	return s, errors.Join(
		appendTo(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		appendTo("/etc/hosts", []byte("127.0.0.1 "+sourceHost+" "+privateHost+"\n")))
}

// withLogin refuses whoever asks for the private name without its login, as
// registries do (OCI distribution specification, "Error codes").
func withLogin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		if r.Host == privateHost && (name != privateUser || password != privatePassword) {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}`)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func appendTo(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// open serves the registry to the node.
func (s *source) open() error {
	paths, err := filepath.Glob("/run/netns/legion-*-n-" + node)
	paths = slices.DeleteFunc(paths, func(path string) bool {
		// Of the machine's own fleets only the names are seen here.
		var st unix.Statfs_t
		return unix.Statfs(path, &st) != nil || st.Type != unix.NSFS_MAGIC
	})
	if err != nil || len(paths) != 1 {
		return fmt.Errorf("the node's network: %v, %v", paths, err)
	}
	l, err := listenIn(paths[0], "127.0.0.1:443")
	if err != nil {
		return err
	}
	go func() {
		server := http.Server{Handler: s.handler, ErrorLog: log.New(io.Discard, "", 0)}
		_ = server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{s.certificate}}))
	}()
	return nil
}

// listenIn listens in a network namespace.
func listenIn(path, address string) (l net.Listener, err error) {
	err = netns.Within(path, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// push puts an image of a program into the registry.
func (s *source) push(as string, at []string, program string, config imagev1.Config) error {
	img, err := standinimage.New(program, at, config)
	if err != nil {
		return err
	}
	return s.put(as, img)
}

// put puts an image into the registry.
func (s *source) put(as string, img imagev1.Image) error {
	ref, err := name.ParseReference(strings.TrimPrefix(s.inside.URL, "http://") + strings.TrimLeftFunc(as, func(r rune) bool { return r != '/' }))
	if err != nil {
		return err
	}
	return remote.Write(ref, img)
}
