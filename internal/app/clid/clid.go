// Package clid assembles the program legion: the command line.
package clid

import (
	"os"
	"path/filepath"
	_ "time/tzdata" // containers often have no database of time zones

	"golang.org/x/term"

	"legion.dev/legion/internal/app"
	"legion.dev/legion/internal/cli"
)

// Main runs the command line and returns the program's exit status.
func Main(args []string) int {
	return cli.Main(args, cli.Env{
		Version: app.Version,
		Called:  filepath.Base(os.Args[0]),
		In:      os.Stdin,
		Out:     os.Stdout,
		Err:     os.Stderr,
		Getenv:  os.Getenv,
		Root:    os.Geteuid() == 0,
		Colour:  term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
	})
}
