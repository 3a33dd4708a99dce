// Command legiond is Legion's service manager: PID 1 of a machine or container,
// or a service of the host's init.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"legion.dev/legion/internal/app"
	"legion.dev/legion/internal/app/hostd"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ":") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var o hostd.Options
	flag.StringVar(&o.Dir, "dir", base(), "directory of state, logs and socket")
	flag.Var((*list)(&o.Units), "units", "directory of unit files; may be given several times, the first wins")
	flag.StringVar(&o.Initd, "initd", "", "directory of init.d scripts, with rc2.d … beside it (/etc/init.d with the distribution's unit path, else none)")
	flag.StringVar(&o.Socket, "socket", "", "where the API listens (DIR/host.sock)")
	flag.StringVar(&o.Cgroup, "cgroup", "", "absolute directory of legiond's cgroup, or none (one below its own)")
	flag.StringVar(&o.Boot, "boot", "", "target to start at boot; all: every unit with WantedBy=; none (default.target as PID 1, with --stand-in or with --units, else none)")
	flag.StringVar(&o.Essential, "essential", "", "unit to start at boot and to end with: legiond's exit status is its own")
	flag.BoolVar(&o.StandIn, "stand-in", false, "stand in for systemd: boot default.target, and show it by /run/systemd (always as PID 1)")
	version := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	if *version {
		fmt.Println("legiond", app.Version)
		return
	}
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "legiond: it takes no arguments, only flags: %s\n", strings.Join(flag.Args(), " "))
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := hostd.Run(context.Background(), o, log); err != nil {
		fmt.Fprintf(os.Stderr, "legiond: %v\n", err)
		var exit hostd.Exit
		if errors.As(err, &exit) {
			os.Exit(exit.Code)
		}
		os.Exit(1)
	}
}

func base() string {
	if os.Geteuid() == 0 {
		return "/var/lib/legion"
	}
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "legion")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "share", "legion")
}
