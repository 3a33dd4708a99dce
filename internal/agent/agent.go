// Package agent makes a host a node of a fleet: it registers the Node and keeps
// its Lease, gives the pods bound to it to legiond as groups, and reports what
// becomes of them. It owns no process and keeps no state but its certificate:
// daemons run on while it is away.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/tunnel"
)

// Host is what the agent needs of legiond.
type Host interface {
	// Watch gives each event to each until the stream breaks.
	Watch(ctx context.Context, each func(hostapi.Event)) error
	Put(ctx context.Context, group service.Group) error
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string, grace time.Duration) error
	Delete(ctx context.Context, name string, grace time.Duration) error
	containerHost
}

// Options are what a person sets.
type Options struct {
	// Node is the node's name.
	Node string
	// Server is https://HOST:PORT; Token joins its fleet.
	Server, Token string
	// Kubeconfig or Bootstrap, where set, make the host a node of a Kubernetes
	// cluster in place of one of a fleet: with the credentials of a kubeconfig,
	// or with such as it gets with the rights of one.
	Kubeconfig, Bootstrap string
	// Taints are what the node is registered with.
	Taints []v1.Taint
	// Eviction is when the node says that it is under pressure; nil is
	// DefaultEviction.
	Eviction Eviction
	// KubeletPort is where such a cluster reaches the node; ClientCA is whose
	// certificates its clients show, none keeps the port closed. TLSCert and
	// TLSKey are the port's own, if it is given some.
	KubeletPort               int
	ClientCA, TLSCert, TLSKey string
	// Dir keeps the credentials.
	Dir string
	// NodeIP is the address under which the node's daemons are reached.
	NodeIP string
	Labels map[string]string
	// Version is Legion's.
	Version string
	// Root says that legiond runs as root.
	Root bool
	// PodPids is how many processes a pod may have; 0 is no limit.
	PodPids int64
	// OCIRuntime is the program that runs images; empty is runc or crun,
	// whichever there is, and "none" is to run none.
	OCIRuntime string
	// Images is the directory of the image store; empty is beside Dir.
	Images string
	// SeccompDir is the directory of the node's seccomp profiles; empty is
	// below Dir.
	SeccompDir string
	// ClusterDNS and ClusterDomain are those of podspec.Node.
	ClusterDNS    []string
	ClusterDomain string
	// ImageAge is how long an image may be of no use before it is removed; 0
	// is for as long as the disk has room.
	ImageAge time.Duration
}

// Check refuses what cannot work.
func (o Options) Check() error {
	var problems []error
	if o.Node == "" {
		problems = append(problems, errors.New("the node has no name: --node NAME"))
	}
	if o.Dir == "" {
		problems = append(problems, errors.New("the agent has no directory for its certificate: --dir DIR"))
	}
	if net.ParseIP(o.NodeIP) == nil {
		problems = append(problems, fmt.Errorf("the node's address %q is no IP address: --node-ip IP", o.NodeIP))
	}
	if o.Kubeconfig != "" && (o.Bootstrap != "" || o.Token != "") || o.Bootstrap != "" && o.Token != "" {
		problems = append(problems, errors.New("a node has its credentials in one way: by --token, --kubeconfig or --bootstrap-kubeconfig"))
	}
	if (o.TLSCert == "") != (o.TLSKey == "") {
		problems = append(problems, errors.New("a certificate needs its key: --tls-cert-file and --tls-private-key-file go together"))
	}
	for _, address := range o.ClusterDNS {
		if net.ParseIP(address) == nil {
			problems = append(problems, fmt.Errorf("the cluster's DNS %q is no IP address: --cluster-dns IP,…", address))
		}
	}
	problems = append(problems, checkLabels(o.Labels))
	return errors.Join(problems...)
}

// InCluster: the node is of a Kubernetes cluster, not of a fleet.
func (o Options) InCluster() bool { return o.Kubeconfig != "" || o.Bootstrap != "" }

// patience is how long Run tries before it says that it is ready without the
// server: a node's start must not depend on it.
const patience = 2 * time.Second

// Run is the agent until ctx ends; pods run on after it. ready is called once.
func Run(ctx context.Context, o Options, host Host, log *slog.Logger, ready func()) error {
	if err := o.Check(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the agent's directory: %w", err)
	}
	isReady := sync.OnceFunc(ready)
	late := time.AfterFunc(patience, isReady)
	defer late.Stop()
	config, err := credentials(ctx, o, log)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	given, err := pki.StoredLabels(o.Dir)
	if err != nil {
		return err
	}
	labels := maps.Clone(given)
	if labels == nil {
		labels = map[string]string{}
	}
	if o.InCluster() {
		labels[HostLabel] = "true"
	}
	maps.Copy(labels, o.Labels)
	config.UserAgent = component + "/" + o.Version
	api, err := newClient(config)
	if err != nil {
		return err
	}
	read := func() (facts, error) { return readFacts("/proc", o.Dir) }
	known, err := read()
	if err != nil {
		return err
	}
	node := podspec.Node{
		Name: o.Node, IP: o.NodeIP, Root: o.Root, PodDir: filepath.Join(o.Dir, "pods"), PodPids: o.PodPids, Allocatable: allocatable(known),
		ClusterDNS: o.ClusterDNS, ClusterDomain: o.ClusterDomain,
	}
	if server, err := url.Parse(config.Host); err == nil {
		node.ServerHost, node.ServerPort = server.Hostname(), cmp.Or(server.Port(), "443")
	}
	if node.PodDir, err = filepath.Abs(node.PodDir); err != nil {
		return fmt.Errorf("cannot name the directory of the pods' volumes: %w", err)
	}
	if err := os.MkdirAll(node.PodDir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the pods' volumes: %w", err)
	}
	var store *keeper
	if o.Root {
		node.OCI = findRuntime(o.OCIRuntime, log)
		if store, err = openImages(cmp.Or(o.Images, filepath.Join(filepath.Dir(o.Dir), "images"))); err != nil {
			return err
		}
	}
	p := newPods(node, host, api, api, disk{node.PodDir, api}, log)
	if store != nil {
		p.images = store
	}
	p.seccomp = cmp.Or(o.SeccompDir, filepath.Join(o.Dir, "seccomp"))
	h := &heartbeat{
		node: nodeInput{Name: o.Node, IP: o.NodeIP, Version: o.Version, Labels: labels, Taints: o.Taints, Images: node.OCI != nil, Least: o.Eviction},
		api:  api, log: log, read: read,
		hostState: make(chan error), registered: make(chan struct{}),
	}
	k := &kubelet{host: host, ip: o.NodeIP, log: log, find: p.find, again: p.again, list: p.list, now: time.Now, stats: (&sampler{node: o.Node, read: p.counters}).Summary, life: ctx}
	if store != nil {
		k.images = store
	}
	reached, err := reach(o, config, k.handler(), log)
	if err != nil {
		return err
	}
	h.node.Port = o.port()

	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { p.Run(ctx) })
	parts.Go(func() { h.Run(ctx) })
	if store != nil {
		c := collector{store: store.store, used: p.used, disk: usage, age: o.ImageAge, log: log}
		parts.Go(func() { c.run(ctx) })
	}
	parts.Go(func() { watchHost(ctx, host, p, h, log) })
	parts.Go(func() { api.WatchPods(ctx, o.Node, sink{ctx, p}, teller(log, "the server")) })
	parts.Go(func() { keepCertificate(ctx, o, config, log) })
	parts.Go(func() { reached(ctx) })
	parts.Go(func() {
		select {
		case <-ctx.Done():
		case <-h.registered:
			log.Info("the node is registered", "node", o.Node, "server", config.Host)
			isReady()
		}
	})
	<-ctx.Done()
	return nil
}

// watchHost keeps a watch of legiond open.
func watchHost(ctx context.Context, host Host, p *pods, h *heartbeat, log *slog.Logger) {
	tell := teller(log, "legiond")
	state := func(err error) {
		select {
		case h.hostState <- err:
		case <-ctx.Done():
		}
	}
	const least, most = 20 * time.Millisecond, time.Second
	for wait := least; ; wait = min(2*wait, most) {
		err := host.Watch(ctx, func(e hostapi.Event) {
			p.HostEvent(ctx, e)
			if e.Type == hostapi.Synced {
				wait = least
				tell(nil)
				state(nil)
			}
		})
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("legiond ended the watch")
		}
		p.HostLost(ctx)
		tell(err)
		state(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// port is where the kubelet's API is served; 0 is nowhere.
func (o Options) port() int {
	if !o.InCluster() || o.ClientCA == "" {
		return 0
	}
	return o.KubeletPort
}

// reach is how the node's server reaches it: through a tunnel, or in a cluster
// at the kubelet's port.
func reach(o Options, config *rest.Config, handler http.Handler, log *slog.Logger) (func(ctx context.Context), error) {
	switch {
	case !o.InCluster():
		return func(ctx context.Context) { keepTunnel(ctx, config, handler, log) }, nil
	case o.port() == 0:
		log.Warn("the kubelet's port is closed: kubectl logs and exec do not work for this node (--client-ca-file opens it)")
		return func(context.Context) {}, nil
	}
	return openPort(o, config, handler, log)
}

// keepTunnel keeps the tunnel to the server open.
func keepTunnel(ctx context.Context, config *rest.Config, handler http.Handler, log *slog.Logger) {
	tls, err := rest.TLSConfigFor(config)
	if err != nil {
		log.Error("cannot open the tunnel: kubectl logs and exec will not work for this node", "error", err)
		return
	}
	tell := teller(log, "the tunnel (for kubectl logs and exec)")
	tunnel.Keep(ctx, tls, config.Host, handler, func() { tell(nil) }, tell)
}

// teller logs the loss of what and its return, each once.
func teller(log *slog.Logger, what string) func(error) {
	var mu sync.Mutex
	last := ""
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		text := ""
		if err != nil {
			text = err.Error()
		}
		switch {
		case errors.Is(err, context.Canceled) || text == last:
			return
		case err == nil:
			log.Info(what + " answers again")
		case last == "":
			log.Warn(what+" does not answer, trying again", "error", err)
		}
		last = text
	}
}
