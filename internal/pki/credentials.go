package pki

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The files of a node's credentials in its directory.
const (
	CertFile   = "client.crt"
	KeyFile    = "client.key"
	CAFile     = "ca.crt"
	ConfigFile = "kubeconfig"
	labelsFile = "labels.json"
)

// Credentials are what a node authenticates with, all PEM, and the labels that
// its token gave to it.
type Credentials struct {
	Certificate, Key, CA []byte
	Labels               map[string]string
}

// kubeconfig names the files beside it. JSON's strings are YAML's.
const kubeconfig = `apiVersion: v1
kind: Config
current-context: fleet
contexts:
- name: fleet
  context: {cluster: fleet, user: %[1]q}
clusters:
- name: fleet
  cluster: {server: %[2]q, certificate-authority: %[3]s}
users:
- name: %[1]q
  user: {client-certificate: %[4]s, client-key: %[5]s}
`

// Store keeps the credentials of node for the server in dir; the certificate
// last, so that half of them never look whole.
func (c Credentials) Store(dir, server, node string) error {
	path := func(name string) string { return filepath.Join(dir, name) }
	labels, err := json.Marshal(c.Labels)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = errors.Join(
			WriteFile(path(CAFile), c.CA, 0o600),
			WriteFile(path(KeyFile), c.Key, 0o600),
			WriteFile(path(ConfigFile), fmt.Appendf(nil, kubeconfig, node, server, CAFile, CertFile, KeyFile), 0o600),
			WriteFile(path(labelsFile), labels, 0o600),
		)
	}
	if err == nil {
		err = WriteFile(path(CertFile), c.Certificate, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot store the node's credentials in %s: %w", dir, err)
	}
	return nil
}

// StoredLabels are those of the credentials in dir.
func StoredLabels(dir string) (map[string]string, error) {
	data, err := os.ReadFile(filepath.Join(dir, labelsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var labels map[string]string
	if err == nil {
		err = json.Unmarshal(data, &labels)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the node's labels: %w", err)
	}
	return labels, nil
}
