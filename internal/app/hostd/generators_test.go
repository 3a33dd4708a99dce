package hostd

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"legion.dev/legion/internal/runner"
)

// TestGenerators: each is run with its three directories, which are made anew;
// systemd's own, masked ones and those that an earlier directory has are not.
func TestGenerators(t *testing.T) {
	procs, err := runner.New(runner.Options{NoSubreaper: true})
	if err != nil {
		t.Fatal(err)
	}
	defer procs.Close()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	script := func(text string) string { return "#!/bin/sh\n" + text + "\n" }
	write("etc/clusters", script(`touch "$1/a.service" "$2/b.service" "$3/c.service"`), 0o755)
	write("lib/clusters", script(`touch "$1/hidden.service"`), 0o755)
	write("lib/broken", script(`echo no cluster; exit 3`), 0o755)
	write("lib/systemd-own", script(`touch "$1/own.service"`), 0o755)
	write("lib/text", script(`touch "$1/text.service"`), 0o644)
	write("lib/masked", script(`touch "$1/masked.service"`), 0o755)
	write("etc/masked", "", 0o755)
	write("run/generator/old.service", "", 0o644)
	var log bytes.Buffer
	g := &generators{from: []string{dir + "/none", dir + "/etc", dir + "/lib"}, to: dir + "/run", procs: procs, log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 2 {
		g.run()
		found, _ := filepath.Glob(dir + "/run/*/*")
		if got := strings.ReplaceAll(strings.Join(found, " "), dir+"/run/", ""); got != "generator/a.service generator.early/b.service generator.late/c.service" {
			t.Errorf("they made %s", got)
		}
	}
	if said := log.String(); !strings.Contains(said, "lib/broken") || !strings.Contains(said, "status 3") || !strings.Contains(said, "no cluster") {
		t.Errorf("of the one that failed: %s", said)
	}
}
