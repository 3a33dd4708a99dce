// Package tunnel lets the server reach a node that only dials out. The agent
// opens one TLS connection to the server and asks to upgrade it; then the two
// change roles: the server opens streams (yamux) inside the connection, and the
// agent answers HTTP requests on them, as a kubelet does on its port.
package tunnel

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// Path is where the server takes tunnels.
	Path = "/legion/v1/tunnel"
	// Protocol is the value of the Upgrade header.
	Protocol = "legion-tunnel"
)

// settings notice a dead peer within about 20 s.
func settings() *yamux.Config {
	config := yamux.DefaultConfig()
	config.KeepAliveInterval = 10 * time.Second
	config.ConnectionWriteTimeout = 10 * time.Second
	config.MaxStreamWindowSize = 1 << 20
	config.LogOutput = io.Discard
	return config
}
