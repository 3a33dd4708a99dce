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

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
)

// credentials gives the configuration to reach the server with: of a kubeconfig
// the user named, else what an earlier start has stored, else by joining with
// the token, or by asking a cluster with the bootstrap kubeconfig.
func credentials(ctx context.Context, o Options, log *slog.Logger) (*rest.Config, error) {
	if o.Kubeconfig != "" {
		config, err := clientcmd.BuildConfigFromFlags(o.Server, o.Kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("cannot use the kubeconfig %s: %w", o.Kubeconfig, err)
		}
		return config, nil
	}
	why, err := stored(o)
	if err == nil && why == "" && o.Token != "" {
		why, err = refused(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	if why != "" && o.Bootstrap != "" {
		log.Info("asking the cluster for a certificate", "node", o.Node, "because", why)
		if err := bootstrap(ctx, o, log); err != nil {
			return nil, err
		}
	} else if why != "" {
		if o.Token == "" {
			if err := expired(o); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("node %q has no credentials (%s): start legion-agent once with --server and --token; 'legion token create' makes one", o.Node, why)
		}
		if err := join(ctx, o, log); err != nil {
			return nil, err
		}
	}
	return storedConfig(o)
}

// stored says why the stored credentials cannot be used, empty if they can.
func stored(o Options) (string, error) {
	certPath := filepath.Join(o.Dir, pki.CertFile)
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
	if _, err := tls.LoadX509KeyPair(certPath, filepath.Join(o.Dir, pki.KeyFile)); err != nil {
		return "the stored key does not fit: " + err.Error(), nil
	}
	caPEM, err := os.ReadFile(filepath.Join(o.Dir, pki.CAFile))
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

// refused says why the server does not take what is stored any more, empty if it
// does or cannot be asked: a node that was removed joins again with a token.
func refused(ctx context.Context, o Options) (string, error) {
	config, err := storedConfig(o)
	if err != nil {
		return "", err
	}
	client, err := newClient(config)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = client.GetNode(ctx, o.Node)
	if err != nil && strings.Contains(err.Error(), fmt.Sprintf(pki.RemovedWords, o.Node)) {
		return err.Error(), nil
	}
	return "", nil
}

// join gets and stores credentials. It asks again until the server answers; a
// refusal is final.
func join(ctx context.Context, o Options, log *slog.Logger) error {
	if o.Server == "" {
		return errors.New("a token needs the server's address too: --server https://HOST:PORT")
	}
	request, err := pki.NewJoin(o.Token, o.Node)
	if err != nil {
		return err
	}
	tell := teller(log, "the server")
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		got, err := request.Send(ctx, o.Server)
		if err == nil {
			return got.Store(o.Dir, o.Server, o.Node)
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

// storedConfig reads what store kept; --server moves the address.
func storedConfig(o Options) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags(o.Server, filepath.Join(o.Dir, pki.ConfigFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read the stored kubeconfig: %w", err)
	}
	config.Host = strings.TrimSuffix(config.Host, "/")
	return config, nil
}
