package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/pki"
)

// bootstrap gets a node's certificate from a cluster, with the rights of a
// kubeconfig that may ask for one, as a kubelet does. It waits until somebody
// approves the request.
func bootstrap(ctx context.Context, o Options, log *slog.Logger) error {
	config, err := clientcmd.BuildConfigFromFlags(o.Server, o.Bootstrap)
	if err != nil {
		return fmt.Errorf("cannot use the kubeconfig %s: %w", o.Bootstrap, err)
	}
	if err = rest.LoadTLSFiles(config); err == nil && len(config.CAData) == 0 {
		err = errors.New("it has no certificate-authority, by which the node would know the cluster")
	}
	if err != nil {
		return fmt.Errorf("cannot use the kubeconfig %s: %w", o.Bootstrap, err)
	}
	key, keyPEM, err := pki.NewKey()
	if err != nil {
		return fmt.Errorf("cannot make the node's key: %w", err)
	}
	cert, err := requestCertificate(ctx, config, o.Node, key, log)
	if err != nil {
		return err
	}
	got := pki.Credentials{Certificate: cert, Key: keyPEM, CA: config.CAData}
	return got.Store(o.Dir, config.Host, o.Node)
}

// renewInCluster gets the next certificate for the key that is stored, and
// keeps it there.
func renewInCluster(ctx context.Context, o Options, config *rest.Config, log *slog.Logger) error {
	key, err := pki.StoredKey(o.Dir)
	if err != nil {
		return err
	}
	cert, err := requestCertificate(ctx, config, o.Node, key, log)
	if err != nil {
		return err
	}
	return pki.WriteFile(filepath.Join(o.Dir, pki.CertFile), cert, 0o600)
}

// requestCertificate asks the cluster to sign the key for the node, and waits
// for it.
func requestCertificate(ctx context.Context, config *rest.Config, node string, key crypto.Signer, log *slog.Logger) ([]byte, error) {
	fail := func(err error) error { return fmt.Errorf("cannot get a certificate for node %q: %w", node, err) }
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}},
	}, key)
	if err != nil {
		return nil, fail(err)
	}
	requests, err := newRequests(config)
	if err != nil {
		return nil, fail(err)
	}
	tell := teller(log, "the cluster")
	made := &certificatesv1.CertificateSigningRequest{}
	err = again(ctx, func() (bool, error) {
		err := requests.Post().Resource("certificatesigningrequests").Timeout(callTimeout).Body(&certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "node-csr-"},
			Spec: certificatesv1.CertificateSigningRequestSpec{
				Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
				SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
				Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
			},
		}).Do(ctx).Into(made)
		tell(err)
		return err == nil, final(err)
	})
	if err != nil {
		return nil, fail(err)
	}
	log.Info("waiting for the certificate signing request to be approved", "request", made.Name)
	var cert []byte
	err = again(ctx, func() (bool, error) {
		now := &certificatesv1.CertificateSigningRequest{}
		err := requests.Get().Resource("certificatesigningrequests").Name(made.Name).Timeout(callTimeout).Do(ctx).Into(now)
		tell(err)
		if err != nil {
			return false, final(err)
		}
		cert = now.Status.Certificate
		return len(cert) > 0, refusedRequest(now)
	})
	if err != nil {
		return nil, fail(err)
	}
	if err := pki.Fits(cert, key.Public()); err != nil {
		return nil, fail(err)
	}
	return cert, nil
}

// refusedRequest is why a request will never be answered with a certificate.
func refusedRequest(r *certificatesv1.CertificateSigningRequest) error {
	for _, c := range r.Status.Conditions {
		refusal := c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed
		if refusal && c.Status == v1.ConditionTrue {
			return fmt.Errorf("request %s: %s: %s: %s", r.Name, c.Type, c.Reason, c.Message)
		}
	}
	return nil
}

// final is an answer that asking again does not change; nil else.
func final(err error) error {
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsInvalid(err) || apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

// newRequests is the client of a cluster's certificate signing requests.
func newRequests(config *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(certificatesv1.AddToScheme(scheme))
	config = rest.CopyConfig(config)
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.APIPath, config.GroupVersion, config.QPS = "/apis", &certificatesv1.SchemeGroupVersion, -1
	return rest.RESTClientFor(config)
}

// again asks until it is answered, at first often, then every few seconds.
func again(ctx context.Context, ask func() (done bool, err error)) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		if done, err := ask(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}
