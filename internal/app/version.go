// Package app holds what the four programs share: their version. The assembly
// of each program is in a package of its own below this one, so that no program
// links what only another one needs.
package app

// Version is set by the linker (see Makefile).
var Version = "dev"
