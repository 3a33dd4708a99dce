// Command scale measures a control plane with a large simulated fleet: how
// soon all pods of a DaemonSet are bound, ready and replaced, how soon a node
// that joins has its pod, what the control plane takes of memory and
// processor, and how many durable transactions the disk gives an etcd in the
// same run. See bench/README.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"legion.dev/legion/test/sim"
)

// options are the command's flags.
type options struct {
	server     string
	kubeconfig string
	pids       string
	stock      string
	raised     bool
	nodes      []int
	runs       int
	joins      int
	scratch    string
	profile    string
	limit      time.Duration
	rest       time.Duration
	sim        sim.Config
}

func main() {
	var o options
	flag.StringVar(&o.server, "server", "bin/legion-server", "the control plane to start, anew for each run")
	flag.StringVar(&o.kubeconfig, "kubeconfig", "", "measure the control plane of this kubeconfig `file` in place of one started here")
	flag.StringVar(&o.pids, "pids", "", "its processes, for memory and processor time, separated by commas")
	flag.StringVar(&o.stock, "stock", "", "measure upstream's control plane, too, with the programs of this `directory` (make stock)")
	only := flag.String("columns", "defaults,raised,legion", "with -stock: what to measure, in this order")
	nodes := flag.String("nodes", "1000,5000", "sizes of the fleet")
	flag.IntVar(&o.runs, "runs", 3, "how often each size is measured")
	flag.IntVar(&o.joins, "joins", 20, "how many nodes join one by one")
	flag.StringVar(&o.scratch, "scratch", "", "where servers keep their data: on the disk to be measured (default: a temporary directory)")
	flag.StringVar(&o.profile, "profile", "", "write CPU profiles of the server to this `prefix`; it is started with --profiling")
	flag.DurationVar(&o.rest, "rest", 15*time.Second, "how long the control plane is left alone before its memory is read")
	flag.DurationVar(&o.limit, "limit", 5*time.Minute, "how long a step may take")
	flag.DurationVar(&o.sim.Start.Min, "start", 0, "the time a pod takes to become ready")
	flag.DurationVar(&o.sim.Stop.Min, "stop", 0, "the time a pod takes to end")
	flag.DurationVar(&o.sim.Renew, "renew", 10*time.Second, "the time between two renewals of a node's Lease")
	flag.IntVar(&o.sim.InFlight, "in-flight", 128, "the most requests of all simulated kubelets together at a time")
	flag.IntVar(&o.sim.Connections, "connections", 16, "over how many connections they speak")
	flag.BoolVar(&o.sim.FinalStatus, "final-status", false, "write the last status of a pod before it is removed")
	flag.Uint64Var(&o.sim.Seed, "seed", 1, "seed of the simulated fleet")
	flag.Parse()
	for s := range strings.SplitSeq(*nodes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			fail(fmt.Errorf("-nodes %q: numbers, separated by commas", *nodes))
		}
		o.nodes = append(o.nodes, n)
	}
	columns, err := columnsOf(o, *only)
	if err != nil {
		fail(err)
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	// Thousands of kubelets do not collect garbage beside a real control plane.
	debug.SetGCPercent(400)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, columns); err != nil {
		stop()
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench/fleet/scale:", err)
	os.Exit(1)
}

func run(ctx context.Context, o options, columns []column) error {
	if o.scratch == "" {
		dir, err := os.MkdirTemp("", "legion-bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.scratch = dir
		for i := range columns {
			columns[i].scratch = dir
		}
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Printf("load before: %s", load)
	}
	etcd, err := transactions(ctx, o.scratch)
	if err != nil {
		return err
	}
	fmt.Printf("etcd alone, in process: %.0f durable transactions/s (one put of 2 KiB each, 64 at a time)\n", etcd)
	for _, n := range o.nodes {
		all := make([][]result, len(columns))
		for c, column := range columns {
			for i := range o.runs {
				r, err := measure(ctx, column.options, n, i)
				if err != nil {
					return fmt.Errorf("%s, %d nodes, run %d: %w", column.name, n, i+1, err)
				}
				fmt.Printf("%s, %d nodes, run %d: %v\n", column.name, n, i+1, r)
				all[c] = append(all[c], r)
			}
			table(n, all[c])
		}
		if len(columns) > 1 {
			beside(n, columns, all)
		}
	}
	return nil
}

// column is a control plane to measure, and how.
type column struct {
	name string
	options
}

// columnsOf returns those that were asked for.
func columnsOf(o options, only string) ([]column, error) {
	if o.stock == "" {
		return []column{{"Legion", o}}, nil
	}
	raised, legion := o, o
	raised.raised, legion.stock = true, ""
	known := map[string]column{
		"defaults": {"stock, defaults", o}, "raised": {"stock, limits raised", raised}, "legion": {"Legion", legion},
	}
	var columns []column
	for s := range strings.SplitSeq(only, ",") {
		c, ok := known[s]
		if !ok {
			return nil, fmt.Errorf("-columns %q: defaults, raised and legion, separated by commas", only)
		}
		columns = append(columns, c)
	}
	return columns, nil
}
