// Package built tells tests where the built programs are.
package built

import (
	"os"
	"path/filepath"
)

// Dir is LEGION_BIN, or bin of the module for a test in a directory below
// test.
func Dir() string {
	if dir := os.Getenv("LEGION_BIN"); dir != "" {
		return dir
	}
	dir, _ := filepath.Abs("../../bin")
	return dir
}
