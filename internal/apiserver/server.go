// Package apiserver assembles the control plane: the library k8s.io/apiserver
// with the registries of Kubernetes that a fleet of daemons needs, an etcd
// inside the process, upstream's controllers for namespaces, garbage, service
// accounts and the root CA, and Legion's own two paths by which nodes join and
// are reached.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/tunnel"
)

// Config says what server to run.
type Config struct {
	// Dir holds everything: Dir/server/pki, Dir/server/etcd and
	// Dir/admin.kubeconfig.
	Dir string
	// Listen is an IP address; Port 0 takes a free one.
	Listen string
	Port   int
	// ListenNetns are more listeners, each inside a network namespace.
	ListenNetns []NetnsAddress
	// TLSSAN are more names and addresses for the server's certificate.
	TLSSAN []string
	// EtcdServers are URLs of an etcd to use in place of the embedded one;
	// the three files belong to it.
	EtcdServers               []string
	EtcdCA, EtcdCert, EtcdKey string
	// Profiling serves /debug/pprof to administrators.
	Profiling bool
	// Controllers, if set, is run while the server runs.
	Controllers func(context.Context, Inside) error
	// Full, if set, is called when the disk of the etcd inside is full, so that
	// nothing is written, and with nil when things are written again.
	Full func(why error)
	// Ready, if set, is called once /readyz is ok, with the server's URL.
	Ready func(url string)
}

// Inside is how controllers inside this process reach the API. Both clients
// have all rights and no rate limit.
type Inside struct {
	// Client writes and watches pods without HTTP.
	Client kubernetes.Interface
	// Informers are shared with the server's own controllers and started by
	// the server. Of what they hold, slim keeps a part.
	Informers informers.SharedInformerFactory
	// REST is for other clients.
	REST *rest.Config
	// Refused is when the store last refused to be written to for want of room;
	// nil if it is elsewhere.
	Refused func() time.Time
}

// NetnsAddress is an address inside the network namespace of Path.
type NetnsAddress struct {
	Path string
	IP   net.IP
}

func (c Config) pki(name string) string { return filepath.Join(c.Dir, "server", "pki", name) }

// stopTime is how long requests may go on after the end was asked for.
const stopTime = 500 * time.Millisecond

// Run serves until ctx ends.
func Run(ctx context.Context, c Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(c.Dir, "server"), 0o700); err != nil {
		return fmt.Errorf("cannot make the server's directory: %w", err)
	}
	unlock, err := lock(filepath.Join(c.Dir, "server", "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	listener, err := listen(c.Listen, c.Port)
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }()
	authority, err := c.prepareCertificates(listener)
	if err != nil {
		return err
	}
	etcd := &ownEtcd{}
	if len(c.EtcdServers) == 0 {
		// Stopped last: after the server that writes to it.
		if etcd, err = startEtcd(ctx, etcdDir(c.Dir), c.Full); err != nil {
			return err
		}
		defer etcd.stop()
		c.EtcdServers = []string{etcd.endpoint}
	}
	return c.serve(ctx, listener, authority, etcd)
}

// serve runs the server on an etcd, whose client is set if it is in this process.
func (c Config) serve(ctx context.Context, listener net.Listener, authority *pki.Authority, etcd *ownEtcd) error {
	// Lists of past versions of everything are left to etcd: to hold them costs
	// more memory than the objects. How large objects are, key by key, is noted
	// for priority and fairness, which is off.
	off := map[string]bool{string(features.ListFromCacheSnapshot): false, string(features.SizeBasedListCostEstimate): false}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(off); err != nil {
		return fmt.Errorf("cannot configure the API server: %w", err)
	}
	opts, err := newOptions(ctx, c, listener, c.EtcdServers)
	if err != nil {
		return fmt.Errorf("cannot configure the API server: %w", err)
	}
	a, err := assemble(ctx, opts)
	if err != nil {
		return fmt.Errorf("cannot configure the API server: %w", err)
	}
	if etcd.client != nil {
		a.config.RESTOptionsGetter = ownStorage{a.config.RESTOptionsGetter, etcd.client, a.pool, newPodParts()}
		a.refused = etcd.room.lastRefused
	}
	sessions := &tunnel.Sessions{}
	server, err := a.newServer(authority, sessions)
	if err != nil {
		return fmt.Errorf("cannot build the API server: %w", err)
	}
	server.ShutdownTimeout = stopTime
	if etcd.client == nil {
		// The store is outside: other servers may be on it.
		peers, err := c.newPeers(a.client, listener, authority)
		if err != nil {
			return err
		}
		sessions.Elsewhere = peers.dial
		go peers.keep(ctx)
	}
	url := "https://" + hostPort(listener.Addr())
	if err := c.addHooks(server, a, authority, url); err != nil {
		return err
	}
	prepared := server.PrepareRun()
	for _, address := range c.ListenNetns {
		stopped, err := c.serveNetns(ctx, prepared.GenericAPIServer, address, listener.Addr().(*net.TCPAddr).Port)
		if err != nil {
			return err
		}
		defer func() { <-stopped }()
	}
	context.AfterFunc(ctx, sessions.Close)
	err = prepared.RunWithContext(ctx)
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

// newServer is the API server with all groups and Legion's paths.
func (a *assembly) newServer(authority *pki.Authority, sessions *tunnel.Sessions) (*genericapiserver.GenericAPIServer, error) {
	completed := a.config.Complete(a.informers)
	server, err := completed.New("legion-server", genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, err
	}
	core := coreGroup{
		storageFactory: a.storage,
		client:         a.client,
		authorizer:     a.config.Authorization.Authorizer,
		issuer:         a.tokens,
		audiences:      a.config.Authentication.APIAudiences,
		tokenLife:      tokenLife,
		sessions:       sessions,
	}
	direct := &stores{admission: completed.AdmissionControl}
	if err := installGroups(server, completed.Config, a.resources, core, direct); err != nil {
		return nil, err
	}
	a.direct.stores.Store(direct)
	mux := server.Handler.NonGoRestfulMux
	mux.Handle(pki.JoinPath, &joinHandler{authority: authority, sessions: sessions, tokens: a.client.CoreV1().Secrets("kube-system"), removed: &a.removed})
	a.removed.drop = sessions.Drop
	mux.Handle(pki.RenewPath, renewHandler{authority})
	mux.Handle(tunnel.Path, tunnelHandler(sessions))
	mux.HandlePrefix(tunnel.StreamPath, streamHandler(sessions))
	mux.HandleFunc(definitionsPath, noDefinitions)
	return server, nil
}

// definitionsPath is what kubectl asks for when it does not know a kind, to
// learn whether somebody has defined it.
const definitionsPath = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// noDefinitions says that nobody has, so that kubectl says in plain words that
// the server does not have the kind. Custom resources are not served.
func noDefinitions(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"kind":"CustomResourceDefinitionList","apiVersion":"apiextensions.k8s.io/v1","metadata":{"resourceVersion":"0"},"items":[]}`)
}

// hostPort is where a client on this machine finds the listener.
func hostPort(addr net.Addr) string {
	tcp := addr.(*net.TCPAddr)
	ip := tcp.IP
	if ip.IsUnspecified() {
		ip = net.IPv4(127, 0, 0, 1)
	}
	return net.JoinHostPort(ip.String(), fmt.Sprint(tcp.Port))
}
