// Command legion-server is the control plane of a fleet.
package main

import (
	"os"

	"legion.dev/legion/internal/app/serverd"
)

func main() { os.Exit(serverd.Main(os.Args[1:])) }
