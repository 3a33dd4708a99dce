// Command cmd runs a simulated fleet against any API server until it is
// interrupted:
//
//	go run ./test/sim/cmd -kubeconfig DIR/admin.kubeconfig -nodes 500
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/test/sim"
)

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig `file` of an administrator")
	config := sim.Config{}
	flag.IntVar(&config.Nodes, "nodes", 100, "how many nodes")
	flag.StringVar(&config.Prefix, "prefix", "node-", "what their names begin with")
	flag.DurationVar(&config.Start.Min, "start", 200*time.Millisecond, "the least time a pod takes to become ready")
	flag.DurationVar(&config.Start.Max, "start-max", 2*time.Second, "the most")
	flag.DurationVar(&config.Stop.Max, "stop-max", time.Second, "the most time a pod takes to end")
	flag.Float64Var(&config.Failures, "failures", 0, "the share of pods that fail, 0 to 1")
	flag.BoolVar(&config.FinalStatus, "final-status", true, "write the last status of a pod before it is removed")
	flag.Uint64Var(&config.Seed, "seed", 1, "what decides all that is left to chance")
	flag.DurationVar(&config.Renew, "renew", 10*time.Second, "the time between two renewals of a Lease")
	zones := flag.Int("zones", 3, "how many zones the nodes are spread over")
	flag.Parse()
	config.Labels = func(i int) map[string]string {
		return map[string]string{"topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%max(*zones, 1))}
	}
	if err := run(*kubeconfig, config); err != nil {
		fmt.Fprintln(os.Stderr, "sim:", err)
		os.Exit(1)
	}
}

func run(kubeconfig string, config sim.Config) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if config.REST, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return fmt.Errorf("cannot reach an API server: %w (name it with -kubeconfig)", err)
	}
	began := time.Now()
	fleet, err := sim.Start(ctx, config)
	if err != nil {
		return err
	}
	fmt.Printf("%d nodes registered in %s\n", fleet.Stats().Nodes, time.Since(began).Round(time.Millisecond))
	for {
		select {
		case <-ctx.Done():
			fleet.Wait()
			return nil
		case <-time.After(5 * time.Second):
			s := fleet.Stats()
			fmt.Printf("nodes %d, bound %d, ready %d, leaving %d\n", s.Nodes, s.Bound, s.Ready, s.Leaving)
		}
	}
}
