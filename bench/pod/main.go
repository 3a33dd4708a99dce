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
	"strings"
	"time"

	"legion.dev/legion/bench/figures"
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

func measure(ctx context.Context, o options) error {
	before := figures.Load()
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
	figures.Print(all, before)
	return nil
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
