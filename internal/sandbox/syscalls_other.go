//go:build !amd64 && !arm64

package sandbox

// tables: of other architectures Legion does not know the system calls' numbers.
var tables []table
