// Command legion-agent makes a host a node of a fleet.
package main

import (
	"os"

	"legion.dev/legion/internal/app/agentd"
)

func main() { os.Exit(agentd.Main(os.Args[1:], os.Stderr)) }
