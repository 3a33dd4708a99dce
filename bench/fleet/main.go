// Command fleet measures a fleet on one machine: how soon it is up, how much
// memory its programs take, and how soon a new node is covered.
//
//	make build && go run ./bench/fleet -rounds 5
//	go run ./bench/fleet -cold      # make host and make up from empty caches
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
	rounds := flag.Int("rounds", 5, "how often each figure is taken")
	settle := flag.Duration("settle", 30*time.Second, "how long to leave programs alone before their memory is read")
	cold := flag.Bool("cold", false, "instead, measure make host and make up from empty module and build caches (fetches all modules, once each)")
	flag.Parse()
	ctx := context.Background()
	var err error
	if *cold {
		err = measureCold(ctx)
	} else {
		err = measure(ctx, *bin, *rounds, *settle)
	}
	if err != nil {
		log.Fatalf("bench/fleet: %v", err)
	}
}

func measure(ctx context.Context, bin string, rounds int, settle time.Duration) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	before := figures.Load()
	b := newBench(bin)
	for i := range rounds {
		log.Printf("round %d of %d", i+1, rounds)
		if err := b.round(ctx, settle); err != nil {
			return err
		}
	}
	figures.Print(b.all, before)
	return nil
}

// measureCold builds in a copy of the repository's committed state, with caches
// of its own.
func measureCold(ctx context.Context) error {
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return err
	}
	for _, target := range []string{"host", "up"} {
		dir, err := os.MkdirTemp("", "legion-cold-")
		if err != nil {
			return err
		}
		src := filepath.Join(dir, "legion")
		if out, err := exec.Command("git", "clone", "-q", strings.TrimSpace(string(root)), src).CombinedOutput(); err != nil {
			return fmt.Errorf("clone: %w: %s", err, out)
		}
		env := append(os.Environ(), "GOMODCACHE="+filepath.Join(dir, "mod"), "GOCACHE="+filepath.Join(dir, "build"), "GOFLAGS=-modcacherw")
		run := func(target string) (time.Duration, error) {
			cmd := exec.CommandContext(ctx, "make", "-C", src, target)
			cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stderr, os.Stderr
			begin := time.Now()
			err := cmd.Run()
			return time.Since(begin), err
		}
		took, err := run(target)
		if err != nil {
			return fmt.Errorf("make %s: %w", target, err)
		}
		fmt.Printf("make %s from empty caches: %.0f s (load average now %s)\n", target, took.Seconds(), figures.Load())
		if target == "up" {
			if _, err := run("down"); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
