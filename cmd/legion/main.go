// Command legion is the command line of Legion: for the services of one host
// and for a fleet.
package main

import (
	"os"

	"legion.dev/legion/internal/app/clid"
)

func main() { os.Exit(clid.Main(os.Args[1:])) }
