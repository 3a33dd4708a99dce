package hostd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/service"
)

// generators are the programs that packages ship to write units at boot and on
// daemon-reload (systemd.generator(7)): postgresql has one for its clusters. Those
// of systemd itself are its own parts and are left out (ADR 7).
type generators struct {
	// from is where they are, the first of a name counts; to is where they
	// write: in to/generator, generator.early and generator.late.
	from  []string
	to    string
	procs *runner.Runner
	log   *slog.Logger
	mu    sync.Mutex
}

var generatorPath = []string{
	"/run/systemd/system-generators", "/etc/systemd/system-generators", "/usr/local/lib/systemd/system-generators",
	"/usr/lib/systemd/system-generators", "/lib/systemd/system-generators",
}

// generatorTime bounds them all together.
const generatorTime = 30 * time.Second

// programs lists those to run.
func (g *generators) programs() (out []string) {
	seen := map[string]bool{}
	for _, dir := range g.from {
		entries, _ := os.ReadDir(dir) // most are not there
		for _, e := range entries {
			name := e.Name()
			if seen[name] || strings.HasPrefix(name, "systemd-") {
				continue
			}
			seen[name] = true
			path := filepath.Join(dir, name)
			// One is masked by an empty file, or by a link to /dev/null.
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Size() > 0 && st.Mode()&0o111 != 0 {
				out = append(out, path)
			}
		}
	}
	return out
}

// run writes the units anew.
func (g *generators) run() {
	g.mu.Lock()
	defer g.mu.Unlock()
	programs := g.programs()
	var dirs []string
	for _, name := range []string{"generator", "generator.early", "generator.late"} {
		dir := filepath.Join(g.to, name)
		err := os.RemoveAll(dir)
		if len(programs) > 0 {
			err = errors.Join(err, os.MkdirAll(dir, 0o755))
		}
		if err != nil {
			g.log.Warn("cannot make room for the units of generators", "error", err)
			return
		}
		dirs = append(dirs, dir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), generatorTime)
	defer cancel()
	for _, path := range programs {
		if err := g.one(ctx, path, dirs); err != nil {
			g.log.Error("a generator of units has failed", "generator", path, "error", err)
		}
	}
}

func (g *generators) one(ctx context.Context, path string, dirs []string) error {
	exit, said, err := g.procs.Output(ctx, runner.Request{
		Group: "legiond", Command: service.Command{Path: path, Argv: append([]string{path}, dirs...)}, Context: &service.ExecContext{},
	}, 4096)
	if err == nil && (exit.Code != 0 || exit.Signal != 0) {
		err = fmt.Errorf("status %d, signal %d: %s", exit.Code, exit.Signal, strings.TrimSpace(string(said)))
	}
	return err
}
