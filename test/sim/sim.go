// Package sim is a fleet of simulated nodes in one process. Each behaves
// towards the API server as an agent or a kubelet does: it registers, renews
// its Lease, takes any pod bound to it to Running and Ready after a while, and
// lets go of pods that are being deleted. How long things take and what fails
// comes from a seed.
package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Config says what fleet to simulate. Only REST and Nodes are required.
type Config struct {
	// REST reaches the API server with an administrator's rights.
	REST *rest.Config
	// Nodes is how many there are at the start.
	Nodes int
	// Prefix begins their names, which end in five digits. Default "node-".
	Prefix string
	// Labels are the labels of node i, besides those that kubelets set.
	Labels func(i int) map[string]string
	// Start and Stop are how long a pod takes to become ready and to end.
	Start, Stop Span
	// Failures is the share of pods, 0 to 1, that fail in place of starting.
	Failures float64
	// Pullable says which images the nodes can get; a pod with another waits
	// for it. Default: all.
	Pullable func(image string) bool
	// FinalStatus writes the status of a pod that ended before it is removed,
	// as kubelets do, at the price of one more write.
	FinalStatus bool
	// Seed decides all that is left to chance.
	Seed uint64
	// Renew is the time between two renewals of a Lease. Default 10 s.
	Renew time.Duration
	// Connections is over how many TCP connections all nodes together speak.
	// Default 16.
	Connections int
	// InFlight is the most requests about pods at a time. Default 128: below
	// 200, where upstream's API server begins to refuse.
	InFlight int
	// Log takes what goes wrong. Default: slog.Default().
	Log *slog.Logger
}

func (c Config) completed() (Config, error) {
	if c.REST == nil {
		return c, errors.New("cannot simulate a fleet: Config.REST is not set")
	}
	if c.Prefix == "" {
		c.Prefix = "node-"
	}
	if c.Renew <= 0 {
		c.Renew = 10 * time.Second
	}
	if c.Connections <= 0 {
		c.Connections = 16
	}
	if c.InFlight <= 0 {
		c.InFlight = 128
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c, nil
}

// Stats is what the fleet has seen of the API.
type Stats struct {
	// Nodes are those that registered and have not left.
	Nodes int
	// Bound pods have a node and are not being deleted; Ready ones are a part
	// of them. Leaving pods are being deleted.
	Bound, Ready, Leaving int
}

// Fleet is a running simulation.
type Fleet struct {
	cfg     Config
	clients []connection
	pods    cache.Indexer
	life    context.Context
	// calls bounds the requests about pods, beats those of nodes.
	calls, beats chan struct{}
	running      sync.WaitGroup

	mu     sync.Mutex
	nodes  map[string]*node
	states map[string]*state // by namespace/name
	stats  Stats
	joined int // how many there have ever been
	// changed is closed and made anew whenever stats change.
	changed chan struct{}
}

// Start registers the nodes and returns when all are there. The fleet lives
// until ctx ends.
func Start(ctx context.Context, config Config) (*Fleet, error) {
	cfg, err := config.completed()
	if err != nil {
		return nil, err
	}
	f := &Fleet{
		cfg:     cfg,
		life:    ctx,
		calls:   make(chan struct{}, cfg.InFlight),
		beats:   make(chan struct{}, 32),
		nodes:   map[string]*node{},
		states:  map[string]*state{},
		changed: make(chan struct{}),
		joined:  cfg.Nodes,
	}
	if f.clients, err = connect(cfg); err != nil {
		return nil, err
	}
	if err := f.watch(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	for i := range cfg.Nodes {
		wg.Go(func() {
			if err := f.join(f.Name(i), i); err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return nil, err
	default:
		return f, nil
	}
}

// Wait returns when all that the fleet does has ended, after the end of its
// context.
func (f *Fleet) Wait() { f.running.Wait() }

// Name is the name of node i.
func (f *Fleet) Name(i int) string { return fmt.Sprintf("%s%05d", f.cfg.Prefix, i) }

// Stats returns what was seen last.
func (f *Fleet) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Await waits until what was seen satisfies want.
func (f *Fleet) Await(ctx context.Context, want func(Stats) bool) error {
	for {
		f.mu.Lock()
		now, changed := f.stats, f.changed
		f.mu.Unlock()
		if want(now) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the simulated fleet did not get there; it is at %+v: %w", now, ctx.Err())
		}
	}
}

// tell lets those know who wait; the caller holds the lock.
func (f *Fleet) tell() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Join adds one more node, and returns when it has registered.
func (f *Fleet) Join(name string) error {
	f.mu.Lock()
	index := f.joined
	f.joined++
	f.mu.Unlock()
	return f.join(name, index)
}

// Silence makes a node say nothing and do nothing until Return, as one that
// lost its network or its power.
func (f *Fleet) Silence(name string) { f.setSilent(name, true) }

// Return ends a Silence.
func (f *Fleet) Return(name string) { f.setSilent(name, false) }

func (f *Fleet) setSilent(name string, silent bool) {
	f.mu.Lock()
	n := f.nodes[name]
	if n != nil {
		n.silent = silent
	}
	f.mu.Unlock()
	if n == nil || silent {
		return
	}
	n.speak()
	objs, _ := f.pods.ByIndex(byNode, name)
	for _, o := range objs {
		f.look(o.(*corev1.Pod))
	}
}
