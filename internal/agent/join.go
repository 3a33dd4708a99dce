package agent

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
)

// The files that joining leaves in the agent's directory.
const (
	certFile   = "client.crt"
	keyFile    = "client.key"
	caFile     = "ca.crt"
	configFile = "kubeconfig"
)

// credentials gives the configuration to reach the server with: of a kubeconfig
// the user named, else what an earlier start has stored, else by joining with
// the token.
func credentials(ctx context.Context, o Options, log *slog.Logger) (*rest.Config, error) {
	if o.Kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags(o.Server, o.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("cannot use the kubeconfig %s: %w", o.Kubeconfig, err)
		}
		return config, nil
	}
	why, err := stored(o)
	if err != nil {
		return nil, err
	}
	if why != "" {
		if o.Token == "" {
			return nil, fmt.Errorf("node %q has no credentials (%s): start legion-agent once with --server and --token; 'legion-server token create' makes one", o.Node, why)
		}
		if err := join(ctx, o, log); err != nil {
			return nil, err
		}
	}
	return storedConfig(o)
}

// stored says why the stored credentials cannot be used, empty if they can.
func stored(o Options) (string, error) {
	certPath := filepath.Join(o.Dir, certFile)
	certPEM, err := os.ReadFile(certPath)
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing is stored in " + o.Dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the node's certificate: %w", err)
	}
	cert, err := pki.ParseCertificate(certPEM)
	if err != nil {
		return certPath + " is damaged: " + err.Error(), nil
	}
	if name := "system:node:" + o.Node; cert.Subject.CommonName != name {
		return fmt.Sprintf("%s is for %q, not for %q", certPath, cert.Subject.CommonName, name), nil
	}
	if time.Now().After(cert.NotAfter) {
		return fmt.Sprintf("%s expired on %s", certPath, cert.NotAfter.Format(time.DateOnly)), nil
	}
	if _, err := tls.LoadX509KeyPair(certPath, filepath.Join(o.Dir, keyFile)); err != nil {
		return "the stored key does not fit: " + err.Error(), nil
	}
	caPEM, err := os.ReadFile(filepath.Join(o.Dir, caFile))
	if err != nil {
		return "the fleet's CA is not stored: " + err.Error(), nil
	}
	if o.Token == "" {
		return "", nil
	}
	wanted, err := token.Parse(o.Token)
	if err != nil {
		return "", err
	}
	if block, _ := pem.Decode(caPEM); block == nil || token.HashCA(block.Bytes) != wanted.CA {
		return "what is stored is of another fleet than the token", nil
	}
	return "", nil
}

// join gets and stores credentials. It asks again until the server answers; a
// refusal is final.
func join(ctx context.Context, o Options, log *slog.Logger) error {
	if o.Server == "" {
		return errors.New("a token needs the server's address too: --server https://HOST:PORT")
	}
	if _, err := token.Parse(o.Token); err != nil {
		return err
	}
	tell := teller(log, "the server")
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		got, err := pki.Join(ctx, o.Server, o.Token, o.Node)
		if err == nil {
			return store(o, got)
		}
		var refused *pki.RefusedError
		if errors.As(err, &refused) || ctx.Err() != nil {
			return err
		}
		tell(err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// store keeps credentials; the certificate last, so that half of them never
// look whole.
func store(o Options, c pki.Credentials) error {
	path := func(name string) string { return filepath.Join(o.Dir, name) }
	config, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"fleet": {Server: o.Server, CertificateAuthority: caFile}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{o.Node: {ClientCertificate: certFile, ClientKey: keyFile}},
		Contexts:       map[string]*clientcmdapi.Context{"fleet": {Cluster: "fleet", AuthInfo: o.Node}},
		CurrentContext: "fleet",
	})
	if err == nil {
		err = errors.Join(
			pki.WriteFile(path(caFile), c.CA, 0o600),
			pki.WriteFile(path(keyFile), c.Key, 0o600),
			pki.WriteFile(path(configFile), config, 0o600),
			pki.WriteFile(path(certFile), c.Certificate, 0o600),
		)
	}
	if err != nil {
		return fmt.Errorf("cannot store the node's credentials in %s: %w", o.Dir, err)
	}
	return nil
}

// storedConfig reads what store kept; --server moves the address.
func storedConfig(o Options) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags(o.Server, filepath.Join(o.Dir, configFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read the stored kubeconfig: %w", err)
	}
	config.Host = strings.TrimSuffix(config.Host, "/")
	return config, nil
}
