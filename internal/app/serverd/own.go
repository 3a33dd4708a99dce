package serverd

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/controller"
)

// ownIdentity is the holder of the DaemonSets' Lease where the store is inside
// the server: there is one such server, so that it goes on at once after its
// death.
const ownIdentity = "legion-server"

// ownLease is how long others wait for it: long, since it has no use for them.
const ownLease = 45 * time.Second

// runControllers runs Legion's controllers inside the server. Whoever drives
// DaemonSets, in a server or outside, does so while it holds one and the same
// Lease. Where the store is shared, other servers may be on it too: then one of
// them looks after the nodes, by a Lease of its own, and whoever begins with the
// DaemonSets reads anew what is true, in place of what the informers of this
// server have seen so far.
func runControllers(ctx context.Context, inside apiserver.Inside, config controller.Config, shared bool) error {
	group, ctx := errgroup.WithContext(ctx)
	nodes := config
	nodes.LeaveDaemonSets, nodes.Informers, nodes.Refused = true, inside.Informers, inside.Refused
	group.Go(func() error {
		if shared {
			return lead(ctx, inside, &controller.Election{Name: "legion-server", Log: config.Log}, nodes)
		}
		nodes.Client = inside.Client
		return controller.Run(ctx, nodes)
	})
	sets := config
	sets.LeaveNodes = true
	election := &controller.Election{Log: config.Log, Labels: map[string]string{controller.ModeLabel: controller.ModeAll}}
	if !shared {
		sets.Informers = inside.Informers
		election.Identity, election.Duration, election.Keep = ownIdentity, ownLease, true
	}
	switch {
	case !config.LeaveDaemonSets:
		group.Go(func() error { return lead(ctx, inside, election, sets) })
	case !shared:
		// Another one may begin at once.
		group.Go(func() error {
			election.GiveUp(ctx, inside.Client)
			return nil
		})
	}
	return group.Wait()
}

// lead runs controllers while this server holds a Lease.
func lead(ctx context.Context, inside apiserver.Inside, e *controller.Election, config controller.Config) error {
	base, err := kubernetes.NewForConfig(e.Fence(inside.REST))
	if err != nil {
		return fmt.Errorf("cannot make the controllers' client: %w", err)
	}
	config.Client = inside.Fenced(base, e.Write)
	if !namespaceThere(ctx, inside.Client) {
		return nil
	}
	return e.Lead(ctx, inside.Client, func(ctx context.Context) error { return controller.Run(ctx, config) })
}

// namespaceThere waits for the namespace of the Leases, which a server makes
// when it starts for the first time. False means that ctx has ended.
func namespaceThere(ctx context.Context, client kubernetes.Interface) bool {
	return nil == wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
		return err == nil, nil
	})
}
