package apiserver

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"k8s.io/apiserver/pkg/authentication/user"

	"legion.dev/legion/internal/pki"
)

// prepareCertificates makes what is missing below Dir/server/pki, and the
// administrator's kubeconfig.
func (c Config) prepareCertificates(listener net.Listener) (*pki.Authority, error) {
	dir := c.pki("")
	authority, err := pki.OpenAuthority(dir)
	if err != nil {
		return nil, err
	}
	hosts := []string{
		"localhost", "127.0.0.1", "::1", "legion-server",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
	}
	if name, err := os.Hostname(); err == nil && name != "" {
		hosts = append(hosts, name)
	}
	if ip := listener.Addr().(*net.TCPAddr).IP; ip.IsUnspecified() {
		hosts = append(hosts, ownAddresses()...)
	} else {
		hosts = append(hosts, ip.String())
	}
	for _, address := range c.ListenNetns {
		hosts = append(hosts, address.IP.String())
	}
	if err := authority.Server(dir, "server", append(hosts, c.TLSSAN...)); err != nil {
		return nil, err
	}
	if err := authority.Client(dir, "admin", "legion-admin", user.SystemPrivilegedGroup); err != nil {
		return nil, err
	}
	if err := pki.KeepKey(c.pki("sa.key")); err != nil {
		return nil, err
	}
	return authority, nil
}

func ownAddresses() []string {
	var out []string
	addresses, _ := net.InterfaceAddrs()
	for _, address := range addresses {
		if ipNet, ok := address.(*net.IPNet); ok && !ipNet.IP.IsLinkLocalUnicast() {
			out = append(out, ipNet.IP.String())
		}
	}
	return out
}

// AdminKubeconfig is where the server at dir keeps the administrator's
// kubeconfig.
func AdminKubeconfig(dir string) string { return filepath.Join(dir, "admin.kubeconfig") }

// writeKubeconfig replaces the administrator's kubeconfig in one step. It is
// written when the server answers, so that its presence says something.
func (c Config) writeKubeconfig(authority *pki.Authority, url string) error {
	path := AdminKubeconfig(c.Dir)
	cert, err := os.ReadFile(c.pki("admin.crt"))
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	key, err := os.ReadFile(c.pki("admin.key"))
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	encode := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: legion
contexts:
- name: legion
  context: {cluster: legion, user: legion-admin}
clusters:
- name: legion
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: legion-admin
  user:
    client-certificate-data: %s
    client-key-data: %s
`, url, encode(authority.PEM), encode(cert), encode(key))
	if was, err := os.ReadFile(path); err == nil && string(was) == text {
		return nil // nor must there be room for it
	}
	if err := pki.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return nil
}
