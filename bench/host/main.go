// Command host measures legiond beside other supervisors on one machine: from
// the death of a daemon to the exec of its successor, the memory and the
// processor time of the supervisor with few and with many services, and how
// long it takes to start them. See bench/README.md.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	bin := flag.String("bin", "bin", "directory with legiond")
	kills := flag.Int("kills", 30, "how often the daemon is killed for each supervisor")
	sizes := flag.String("services", "10,1000", "numbers of services")
	only := flag.String("only", "", "measure this supervisor only")
	idle := flag.Duration("idle", 5*time.Second, "how long the idle supervisor is watched")
	within := flag.Int("ask-systemd", 0, "measure that many requests to the systemd of this namespace, and nothing else (used by the command itself)")
	flag.Parse()
	if *within > 0 {
		if err := askSystemd(*within); err != nil {
			fmt.Fprintln(os.Stderr, "bench/host: systemd:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*bin, *only, *sizes, *kills, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "bench/host:", err)
		os.Exit(1)
	}
}

func run(bin, only, sizes string, kills int, idle time.Duration) error {
	// What a supervisor leaves behind comes to this process, which ends it.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "legion-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-stop
		killAll()
		os.RemoveAll(dir)
		os.Exit(1)
	}()
	defer killAll()
	var ns []int
	for s := range strings.SplitSeq(sizes, ",") {
		var n int
		if _, err := fmt.Sscan(s, &n); err != nil || n < 1 {
			return fmt.Errorf("-services %q: numbers, separated by commas", sizes)
		}
		ns = append(ns, n)
	}
	fmt.Println("| supervisor | services | processes | all running after | CPU until then | RSS | PSS | CPU idle | kill → exec median | p90 | max | n |")
	fmt.Println("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |")
	var apis []string // rows of requests
	for _, s := range supervisors(bin) {
		if only != "" && s.name != only {
			continue
		}
		if why := s.missing(); why != "" {
			fmt.Fprintf(os.Stderr, "%s: %s, left out\n", s.name, why)
			continue
		}
		for i, n := range ns {
			k := kills
			if i > 0 {
				k = min(kills, 10)
			}
			sub := filepath.Join(dir, fmt.Sprintf("%s-%d", s.name, n))
			row, api, err := measure(s, sub, n, k, idle)
			if err != nil {
				return fmt.Errorf("%s with %d services: %w", s.name, n, err)
			}
			fmt.Println(row)
			if api != "" {
				apis = append(apis, api)
			}
		}
	}
	if len(apis) > 0 {
		fmt.Println("\n| supervisor | services | reload median | max | list median | max | n |")
		fmt.Println("| --- | --: | --: | --: | --: | --: | --: |")
		fmt.Println(strings.Join(apis, "\n"))
	}
	return nil
}
