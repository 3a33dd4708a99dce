package apiserver

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/tunnel"
)

// Servers that share a store find each other by Leases in kube-system, each with
// this label, and this annotation that says where it serves.
const (
	peerLabel = "legion.dev/server"
	peerURL   = "legion.dev/server-url"
)

// A server says every so often that it is there, and is taken to be for so long.
const (
	peerRenewal = 10 * time.Second
	peerLife    = 40 * time.Second
	// peersFresh is how long the list of the others is good for.
	peersFresh = 2 * time.Second
)

// peers are the servers that share the store with this one.
type peers struct {
	client kubernetes.Interface
	// url is where the others reach this one, config is by what they know it.
	url    string
	config *tls.Config

	mu    sync.Mutex
	known []string
	read  time.Time
}

// newPeers reads the administrator's certificate, which this server shows to the
// others.
func (c Config) newPeers(client kubernetes.Interface, listener net.Listener, authority *pki.Authority) (*peers, error) {
	cert, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("cannot read what other servers know this one by: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(authority.Cert)
	return &peers{
		client: client, url: "https://" + reachable(listener.Addr().(*net.TCPAddr)),
		config: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, Certificates: []tls.Certificate{cert}},
	}, nil
}

// reachable is where other machines find a listener: its address, or if it
// listens on all, one of this machine's.
func reachable(address *net.TCPAddr) string {
	if address.IP.IsUnspecified() {
		for _, own := range ownAddresses() {
			if ip := net.ParseIP(own); !ip.IsLoopback() {
				return net.JoinHostPort(own, fmt.Sprint(address.Port))
			}
		}
	}
	return hostPort(address)
}

// keep says that this server is there until ctx ends.
func (p *peers) keep(ctx context.Context) {
	renew := time.NewTimer(0)
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-renew.C:
		}
		next := peerRenewal
		if err := p.renew(ctx); err != nil && ctx.Err() == nil {
			klog.V(2).InfoS("cannot say that this server is there", "error", err)
			next = time.Second
		}
		renew.Reset(next)
	}
}

func (p *peers) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, peerRenewal)
	defer cancel()
	now, seconds := metav1.NowMicro(), int32(peerLife/time.Second)
	name := fmt.Sprintf("legion-server-%.5x", sha256.Sum256([]byte(p.url)))
	lease := coordinationv1.Lease(name, metav1.NamespaceSystem).
		WithLabels(map[string]string{peerLabel: "true"}).WithAnnotations(map[string]string{peerURL: p.url}).
		WithSpec(coordinationv1.LeaseSpec().WithHolderIdentity(p.url).WithLeaseDurationSeconds(seconds).WithRenewTime(now))
	_, err := p.client.CoordinationV1().Leases(metav1.NamespaceSystem).
		Apply(ctx, lease, metav1.ApplyOptions{FieldManager: "legion-server", Force: true})
	return err
}

// others are the URLs of the other servers that are there.
func (p *peers) others(ctx context.Context) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.read) < peersFresh {
		return p.known, nil
	}
	list, err := p.client.CoordinationV1().Leases(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: peerLabel})
	if err != nil {
		return nil, fmt.Errorf("cannot ask which servers there are: %w", err)
	}
	p.known, p.read = nil, time.Now()
	for _, l := range list.Items {
		url, renewed := l.Annotations[peerURL], l.Spec.RenewTime
		if url == "" || url == p.url || renewed == nil {
			continue
		}
		if time.Since(renewed.Time) < peerLife {
			p.known = append(p.known, url)
		}
	}
	return p.known, nil
}

// dial opens a stream to a node whose tunnel one of the others has.
func (p *peers) dial(ctx context.Context, node string) (net.Conn, error) {
	others, err := p.others(ctx)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, url := range others {
		conn, err := tunnel.Through(ctx, p.config, url, node)
		if err == nil {
			return conn, nil
		}
		if missing := (*tunnel.NotConnectedError)(nil); !errors.As(err, &missing) {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return nil, errors.Join(failed...)
	}
	return nil, &tunnel.NotConnectedError{Node: node}
}

// streamHandler lets other servers, which show an administrator's certificate,
// reach the nodes whose tunnels are here.
func streamHandler(sessions *tunnel.Sessions) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sessions.Pass(w, r, strings.TrimPrefix(r.URL.Path, tunnel.StreamPath))
	})
}
