// Command pod measures one node: how soon a new pod's process runs, how soon a
// hundred of them do, and what the agent takes of memory and processor time.
//
//	make build && go run ./bench/pod -rounds 30
//
// The pods name their node, so that no controller is measured. Those of an image
// need root and runc or crun; the image is imported and unpacked before.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	bin := flag.String("bin", "bin", "`directory` of the built programs")
	rounds := flag.Int("rounds", 30, "how many pods are started one after the other, of each kind")
	together := flag.Int("together", 100, "how many pods are started at once")
	runs := flag.Int("runs", 3, "how often")
	settle := flag.Duration("settle", 15*time.Second, "how long to leave the agent alone before its memory is read")
	idle := flag.Duration("idle", 30*time.Second, "over which its processor time is taken")
	flag.Parse()
	path, err := filepath.Abs(*bin)
	if err == nil {
		err = measure(context.Background(), options{path, *rounds, *together, *runs, *settle, *idle})
	}
	if err != nil {
		log.Fatalf("bench/pod: %v", err)
	}
}

type options struct {
	bin                    string
	rounds, together, runs int
	settle, idle           time.Duration
}

// series is one figure, taken several times.
type series struct {
	name, target, unit string
	values             []float64
}

func (s *series) add(v float64) { s.values = append(s.values, v) }

func (s *series) String() string {
	if len(s.values) == 0 {
		return fmt.Sprintf("| %s | %s | not measured | | 0 |", s.name, s.target)
	}
	v := slices.Sorted(slices.Values(s.values))
	return fmt.Sprintf("| %s | %s | %.3g %s | %.3g – %.3g | %d |", s.name, s.target, v[len(v)/2], s.unit, v[0], v[len(v)-1], len(v))
}

func measure(ctx context.Context, o options) error {
	before := load()
	dir, err := os.MkdirTemp("", "legion-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	legion := filepath.Join(o.bin, "legion")
	if err := run(exec.CommandContext(ctx, legion, "up", "--dir", dir, "--nodes", "1", "--port", "0")); err != nil {
		return err
	}
	all, err := measureNode(ctx, o, dir)
	if e := run(exec.CommandContext(ctx, legion, "down", "--dir", dir)); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	fmt.Println("| figure | target | median | spread | n |\n| --- | --- | --- | --- | --- |")
	for _, s := range all {
		fmt.Println(s)
	}
	fmt.Printf("\nload average before: %s; after: %s\n", before, load())
	return nil
}

func load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
